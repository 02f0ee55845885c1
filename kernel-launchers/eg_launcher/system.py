"""The few calls to the operating system that Python has no words for: parent-death signal, subreaper, process title, trim.

Linux. Elsewhere each function does nothing and says so by returning False; what depends on it falls back.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_M_ARENA_MAX = -8

LINUX = sys.platform.startswith("linux")


def _prctl(option: int, argument: int) -> bool:
    if not LINUX:
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(argument), 0, 0, 0) == 0)


def die_with_parent(parent_pid: int) -> bool:
    """Have this process killed when its parent (thread) ends. False when the parent is gone already, or unsupported."""
    done = _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return done and os.getppid() == parent_pid


def become_subreaper() -> bool:
    """Descendants that lose their parent become children of this process."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_short_name(name: str) -> bool:
    """What `ps -o comm` and `top` show; 15 bytes."""
    if not LINUX:
        return False
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    return _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def set_title(argv: list[str]) -> bool:
    """Write argv over the one given at exec, as far as there is room; what is left over is zeroed."""
    if not LINUX:
        return False
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    room = end - start
    if room <= 1:
        return False
    title = b"\0".join(os.fsencode(argument) for argument in argv)[: room - 1]
    ctypes.memmove(start, title.ljust(room, b"\0"), room)
    return True


def one_malloc_arena() -> None:
    """Threads share one arena: several mostly empty ones cost an idle process megabytes. glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Return free heap pages to the system. glibc only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def thread_count() -> int:
    """Threads of this process as the system counts them, those of C libraries included; 1 where it cannot be known."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1
