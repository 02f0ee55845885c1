"""Limits and bounds by their values, and the sentence for each."""

from __future__ import annotations

import pytest

from eg_knative.pool.quota import Bounds, Limits, bounds, limits, message
from eg_knative.pool.sizing import Allocation
from eg_knative.settings import PoolSettings
from eg_knative.specification import PoolConfiguration
from eg_knative.substrates.contract import Room


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        (PoolConfiguration(), Bounds(floor=4, ceiling=4)),
        (PoolConfiguration(floor=1), Bounds(floor=1, ceiling=4)),
        (PoolConfiguration(floor=9), Bounds(floor=9, ceiling=9)),
        (PoolConfiguration(ceiling=2), Bounds(floor=2, ceiling=2)),
        (PoolConfiguration(ceiling=9), Bounds(floor=4, ceiling=9)),
        (PoolConfiguration(floor=0, ceiling=0), Bounds(floor=0, ceiling=0)),
        (PoolConfiguration(floor=2, ceiling=7), Bounds(floor=2, ceiling=7)),
        (PoolConfiguration(enabled=False, floor=2, ceiling=7), Bounds(floor=0, ceiling=0)),
    ],
)
def test_the_pool_size_stands_in_for_what_a_kernelspec_does_not_say(configuration: PoolConfiguration, expected: Bounds) -> None:
    assert bounds(configuration, size=4) == expected


def test_starts_on_their_way_are_taken_off_the_room() -> None:
    found = limits(
        settings=PoolSettings(total=7),
        rooms={"local": Room(members=5), "full": Room(members=0, message="the machine has 400 MB of memory left")},
        held={"local": 3},
        on_their_way={"local": 2},
    )
    assert found == Limits(
        total=7,
        rooms={"local": 6, "full": 0},
        free={"local": 3, "full": 0},
        messages={"full": "the machine has 400 MB of memory left"},
    )


def test_more_on_their_way_than_room_is_no_room() -> None:
    found = limits(settings=PoolSettings(), rooms={"local": Room(members=1)}, held={}, on_their_way={"local": 4})
    assert found.free == {"local": 0}


def test_each_limit_has_a_sentence() -> None:
    within = Limits(total=7, rooms={}, free={}, messages={"full": "the machine has 400 MB of memory left"})
    assert message(Allocation(wanted=3), limits=within) is None
    total = message(Allocation(wanted=1, short=2, limited_by="total"), limits=within)
    room = message(Allocation(wanted=1, short=2, limited_by="full"), limits=within)
    assert total is not None
    assert "2 more" in total
    assert "7" in total
    assert room is not None
    assert "400 MB" in room
