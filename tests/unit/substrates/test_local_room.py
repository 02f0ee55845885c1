from __future__ import annotations

import pytest

from eg_knative.substrates.contract import Room
from eg_knative.substrates.local_room import MEMBER_BYTES, READING_KEPT_SECONDS, MemoryGauge, available_bytes, room

GIB = 1024**3


@pytest.mark.parametrize(
    ("running", "maximum", "available", "expected"),
    [
        (0, 5, 100 * GIB, Room(members=5)),
        (3, 5, 100 * GIB, Room(members=2)),
        (0, 500, GIB + 10 * MEMBER_BYTES + 1, Room(members=10)),
        (5, 5, 100 * GIB, Room(members=0, message="5 kernels run, and maximum_processes is 5.")),
        (9, 5, 0, Room(members=0, message="9 kernels run, and maximum_processes is 5.")),
        (
            0,
            5,
            GIB,
            Room(members=0, message="1024 MiB of memory are available; 1024 MiB (minimum_free_memory_bytes) are kept free."),
        ),
    ],
)
def test_room(running: int, maximum: int, available: int, expected: Room) -> None:
    assert room(running=running, maximum=maximum, available_bytes=available, minimum_free_bytes=GIB) == expected


def test_the_machine_has_some_memory() -> None:
    assert 16 * 1024**2 < available_bytes() < 2**50


def test_memory_is_read_once_in_a_while_and_members_are_counted_each_time() -> None:
    now = 100.0
    readings = iter([GIB + 10 * MEMBER_BYTES, GIB + 4 * MEMBER_BYTES])
    gauge = MemoryGauge(read=lambda: next(readings), clock=lambda: now)

    def members(running: int) -> int:
        return room(running=running, maximum=8, available_bytes=gauge.available_bytes(), minimum_free_bytes=GIB).members

    assert [members(running) for running in (0, 1, 7, 8, 7)] == [8, 7, 1, 0, 1]  # of the first reading, all of them
    now += READING_KEPT_SECONDS - 0.01
    assert members(0) == 8
    now += 0.01
    assert [members(running) for running in (0, 7)] == [4, 1]
    now += READING_KEPT_SECONDS - 0.01
    assert members(0) == 4
