"""Background tasks with an owner: awaited at the end, and a failure is never unheard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from eg_launcher.errors import LauncherError

log = logging.getLogger("eg_launcher")
_T = TypeVar("_T")


class Tasks:
    """Errors of ours belong to whoever awaits a task; any other is logged and told to `on_failure`."""

    def __init__(self, *, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
        """Start a task."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def cancel(self) -> None:
        """Cancel and await all but the caller's own."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, LauncherError):
            log.error("The task %r failed", task.get_name(), exc_info=error)
            self._on_failure()
