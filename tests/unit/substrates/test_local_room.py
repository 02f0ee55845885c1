from __future__ import annotations

import pytest

from eg_knative.substrates.contract import Room
from eg_knative.substrates.local_room import MEMBER_BYTES, available_bytes, room

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
