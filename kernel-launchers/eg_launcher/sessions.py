"""A note of the kernel processes that were started, for whoever clears up after a launcher that was killed.

A kernel leads a session of its own, and it dies with its launcher; what a user's code started does not. Who knows the leader can
find the rest. Nothing here is read by the launcher itself, and a note that cannot be written harms nothing else.
"""

from __future__ import annotations

import logging
import os

FILE = "sessions"
_KEPT = 32
log = logging.getLogger("eg_launcher")


def note(directory: str, pid: int) -> None:
    """Add a line to `sessions` in this directory: process id, start time in clock ticks since the boot. Linux only."""
    path = os.path.join(directory, FILE)
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            started = stat.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return  # it ended already, or this is not Linux
    try:
        lines: list[str] = []
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                lines = file.read().splitlines()
        temporary = f"{path}.new"
        with open(temporary, "w", encoding="ascii") as file:
            file.writelines(f"{line}\n" for line in [*lines, f"{pid} {started}"][-_KEPT:])
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        log.warning("The note of kernel processes cannot be written: %s", error)
