"""What a person sees while `up` works: each long part, how many are left, and how long it took last time.

Times are kept in the cache for the next run. Quiet parts are only timed; `verbose` prints them too.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class Progress:
    """Prints steps and remembers their times."""

    def __init__(self, *, times: Path, verbose: bool = False, out: TextIO | None = None) -> None:
        self._file = times
        self._verbose = verbose
        self._out = out or sys.stderr
        self._last: dict[str, float] = _read(times)
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        """One line for the person."""
        self._out.write(line + "\n")
        self._out.flush()

    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._started

    @contextmanager
    def step(self, name: str, *, number: int, total: int) -> Iterator[None]:
        """A long part: announced before, with its place in the row, and timed after."""
        last = self._last.get(name)
        self.say(f"[{number}/{total}] {name}" + (f" (last time {last:.0f} s)" if last else ""))
        began = time.monotonic()
        yield
        self._remember(name, time.monotonic() - began)
        self.say(f"[{number}/{total}] {name}: {self._last[name]:.0f} s")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A short part of starting the cluster."""
        if self._verbose:
            self.say(f"phase {name}")
        began = time.monotonic()
        yield
        self._remember(name, time.monotonic() - began)
        if self._verbose:
            self.say(f"phase {name}: {self._last[name]:.1f} s")

    def _remember(self, name: str, seconds: float) -> None:
        self._last[name] = round(seconds, 2)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(self._last, indent=1, sort_keys=True))
        fresh.replace(self._file)


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}
