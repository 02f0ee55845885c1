"""Why a kernel ended, in words: exit code, signal, or out of memory as far as the system lets on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any


class MemoryKills:
    """Counters of the kernel's out-of-memory killer, of our cgroup (v2, v1) or of the machine; `grew` since it was made."""

    def __init__(self) -> None:
        self._before = _oom_kills()

    def grew(self) -> bool:
        """Whether anything was killed for memory since. On a machine without cgroup counters it may have been another process."""
        now = _oom_kills()
        return any(count > self._before.get(source, count) for source, count in now.items())


def describe_exit(*, status: int, tail: str, memory_killed: bool) -> dict[str, Any]:
    """The protocol's `exit` without `generation` and `restarted`."""
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if signum == signal.SIGKILL and memory_killed:
        reason, words = "out_of_memory", "The kernel was killed because memory ran out"
    elif signum is not None:
        reason, words = "signalled", f"The kernel was ended by signal {signum} ({_signal_words(signum)})"
    else:
        reason, words = "exited", f"The kernel ended with exit code {code}"
    return {"code": code, "signal": signum, "reason": reason, "message": f"{words}. Last output: {tail}" if tail else words}


def _signal_words(signum: int) -> str:
    try:
        name = signal.Signals(signum).name
    except ValueError:
        return "a real-time signal"
    return f"{name}, {signal.strsignal(signum)}"


def _oom_kills() -> dict[str, int]:
    counts: dict[str, int] = {}
    for path, word in _sources():
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="ascii", errors="replace").splitlines():
                name, _, value = line.partition(" ")
                if name == word and value.strip().isdigit():
                    counts[str(path)] = int(value)
    # The machine's counter counts everybody's; it is asked only where no cgroup tells of ours.
    ours = {source: count for source, count in counts.items() if source != "/proc/vmstat"}
    return ours or counts


def _sources() -> list[tuple[Path, str]]:
    sources = [(Path("/proc/vmstat"), "oom_kill")]
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return sources
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        relative = path.lstrip("/")
        if not controllers:
            sources += [(root / relative / "memory.events", "oom_kill"), (root / "memory.events", "oom_kill")]
        elif "memory" in controllers.split(","):
            sources.append((root / "memory" / relative / "memory.oom_control", "oom_kill"))
            sources.append((root / "memory" / "memory.oom_control", "oom_kill"))
    return sources
