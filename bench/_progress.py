"""A progress bar that any benchmark can step, on the terminal only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich import progress as rich_progress
from rich.console import Console


class Progress:
    """Shows one bar at a time on `console`."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextlib.contextmanager
    def task(self, title: str, *, total: int) -> Iterator[Callable[[], None]]:
        """A bar of `total` steps; call what it yields once for each."""
        columns = (
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
        )
        with rich_progress.Progress(*columns, console=self._console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda: bar.advance(task)
