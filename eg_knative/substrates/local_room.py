"""How many more members this machine takes: a pure decision, and the reading of memory that it needs.

The decision is asked for whenever the pool wakes, the reading is of files of the system's: `MemoryGauge` bounds how often
they are read. It does not promise that memory which was taken since the last reading is seen; the count of members, which
is handed to `room` each time, is always that of now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil

from eg_knative.substrates.contract import Room

MEMBER_BYTES = 96 * 1024**2
"""What one more member is expected to use at most while idle: 87 to 89 MiB (PSS) for a plain ipykernel with pandas, 39 MiB
for one forked from a zygote, and its launcher."""

READING_KEPT_SECONDS = 0.5
"""A kernel that boots takes its memory over about as long, so that a newer reading would say little more."""

_GROUP = Path("/sys/fs/cgroup")


def room(*, running: int, maximum: int, available_bytes: int, minimum_free_bytes: int) -> Room:
    """Room for members by count and by memory; the message names the limit that leaves none."""
    by_count = max(0, maximum - running)
    by_memory = max(0, (available_bytes - minimum_free_bytes) // MEMBER_BYTES)
    if by_count == 0:
        return Room(members=0, message=f"{running} kernels run, and maximum_processes is {maximum}.")
    if by_memory == 0:
        return Room(
            members=0,
            message=f"{available_bytes // 1024**2} MiB of memory are available;"
            f" {minimum_free_bytes // 1024**2} MiB (minimum_free_memory_bytes) are kept free.",
        )
    return Room(members=min(by_count, by_memory))


def available_bytes() -> int:
    """Memory that can still be used without swapping: the machine's, or this control group's where that is less (cgroup v2).

    Reads files of the system's that are memory themselves: about 0.1 ms.
    """
    machine: int = psutil.virtual_memory().available
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
        reclaimable = sum(
            int(value)
            for name, value in (line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
            if name in ("inactive_file", "slab_reclaimable")
        )
    except (OSError, ValueError):  # no such group, or "max": no limit
        return machine
    return min(machine, max(0, limit - used + reclaimable))


class MemoryGauge:
    """`available_bytes`, read at most once in READING_KEPT_SECONDS. `clock`: monotonic seconds; both are for tests."""

    def __init__(self, *, read: Callable[[], int] = available_bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._value = 0
        self._read_at: float | None = None

    def available_bytes(self) -> int:
        """Bytes that could be used without swapping when they were last read."""
        now = self._clock()
        if self._read_at is None or now - self._read_at >= READING_KEPT_SECONDS:
            self._value = self._read()
            self._read_at = now
        return self._value
