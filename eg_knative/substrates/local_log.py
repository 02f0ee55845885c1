"""Launchers' logs on disk: their end for messages, and a limit to their size.

A launcher writes to an inherited descriptor opened for appending, so that its log goes on when the gateway is gone.
While a gateway runs it cuts logs back; between two looks, or without a gateway, one may grow past the limit.
"""

from __future__ import annotations

import os
from pathlib import Path

LIMIT_BYTES = 1024 * 1024
_KEPT_BYTES = 256 * 1024
_TAIL_LINES = 12
_TAIL_BYTES = 4096


def open_log(path: Path) -> int:
    """A descriptor that appends to the log; the caller closes it. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def tail(path: Path) -> str:
    """The last lines, printable characters only; empty when there are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines)


def trim(path: Path) -> None:
    """Cut a log that has outgrown its limit to its end. What is written meanwhile may be lost. Raises OSError."""
    if not path.exists() or path.stat().st_size <= LIMIT_BYTES:
        return
    with path.open("r+b") as file:
        file.seek(-_KEPT_BYTES, os.SEEK_END)
        kept = file.read(_KEPT_BYTES)
        # The writer appends, so it goes on behind whatever length the file has.
        file.truncate(0)
        file.seek(0)
        file.write(b"[cut here: the log had outgrown its limit]\n" + kept)
