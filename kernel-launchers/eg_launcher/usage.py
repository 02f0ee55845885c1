"""What a kernel's processes use, from /proc; psutil where there is none. Reads memory-backed files only, a few per process."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_PROCESSES = 1000


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of a process and its descendants. `proportional_bytes` shares shared pages out; None where the system does not tell."""

    cpu_seconds: float
    resident_bytes: int
    processes: int
    threads: int
    proportional_bytes: int | None = None
    memory_limit_bytes: int | None = None


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, nearest first; what comes and goes meanwhile may be missing."""
    found: list[int] = []
    queue = [pid]
    while queue and len(found) < _MOST_PROCESSES:
        for child in _children(queue.pop(0)):
            found.append(child)
            queue.append(child)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii")
            children += [int(word) for word in text.split()]
    except FileNotFoundError:
        if not os.path.isdir("/proc/self/task"):
            return _children_portably(pid)
    except OSError:
        return children
    return children


def _children_portably(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def measure(pid: int | None, *, thorough: bool = False) -> Usage:
    """Usage of a process tree; zeros when there is none. `thorough` adds the proportional set size and the cgroup's limit."""
    cpu, resident, processes, threads, proportional = 0.0, 0, 0, 0, 0
    known = True
    for each in [] if pid is None else [pid, *descendants(pid)]:
        try:
            fields = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        cpu += (int(fields[11]) + int(fields[12])) / _TICKS
        threads += int(fields[17])
        resident += int(fields[21]) * _PAGE
        processes += 1
        if thorough:
            share = _proportional(each)
            known = known and share is not None
            proportional += share or 0
    return Usage(
        cpu_seconds=round(cpu, 2),
        resident_bytes=resident,
        processes=processes,
        threads=threads,
        proportional_bytes=proportional if thorough and known else None,
        memory_limit_bytes=_memory_limit() if thorough else None,
    )


def _proportional(pid: int) -> int | None:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _memory_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        # v1 says "no limit" with a number near 2**63.
        if text.isdigit() and int(text) < 1 << 60:
            return int(text)
    return None
