"""Says what is being done and for how long, on a terminal and in a log alike.

On a terminal the line of the running step is redrawn; elsewhere each step prints when it begins, every fifteen seconds and when
it ends, so that a log shows no control characters and no silence.
"""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

REDRAW_SECONDS = 0.2
REMINDER_SECONDS = 15.0


class Step:
    """One step: `with Step("Installing") as step: step.detail = "3 of 120"`."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.detail = ""
        self._began = 0.0
        self._finished = threading.Event()
        self._terminal = sys.stdout.isatty()
        self._painter = threading.Thread(target=self._paint, daemon=True)

    def __enter__(self) -> Step:
        self._began = time.monotonic()
        if not self._terminal:
            print(f"{self.title} …", flush=True)
        self._painter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finished.set()
        self._painter.join()
        self._write("failed" if kind else "done", last=True)

    def _paint(self) -> None:
        while not self._finished.wait(REDRAW_SECONDS if self._terminal else REMINDER_SECONDS):
            self._write("", last=False)

    def _write(self, outcome: str, *, last: bool) -> None:
        elapsed = f"{time.monotonic() - self._began:.1f} s"
        text = f"{self.title} … {' '.join(part for part in (outcome or self.detail, elapsed) if part)}"
        if self._terminal:
            sys.stdout.write(f"\r\x1b[2K{text}" + ("\n" if last else ""))
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()


def complain(message: str) -> None:
    """One clear line on standard error."""
    print(message, file=sys.stderr, flush=True)
