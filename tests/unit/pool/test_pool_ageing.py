"""Old members are replaced one by one, and the pool is not smaller for it where the limits allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.unit.pool.pool_fakes import FakeSubstrate, World, specification

MakeWorld = Callable[..., World]


async def watch(world: World, seconds: float) -> tuple[int, int]:
    """The least and the greatest number of ready members in that time."""
    least, most = 10_000, 0
    for _ in range(int(seconds / 0.05)):
        await asyncio.sleep(0.05)
        ready = world.count().get("ready", 0)
        least, most = min(least, ready), max(most, ready)
    return least, most


async def test_the_replacement_comes_first(make_world: MakeWorld) -> None:
    world = make_world(size=3)
    await world.warm(specification(maximum_age_seconds=60.0))
    first = set(world.substrate.launchers)
    assert await watch(world, 70) == (3, 3)
    assert not first & set(world.substrate.launchers)
    assert world.substrate.most <= 4 + 1, "one more at a time, and the one that is being stopped"
    assert [event.reason for event in world.kinds("retired")] == ["aged"] * 3


async def test_without_a_place_for_one_more_the_old_one_goes_first(make_world: MakeWorld) -> None:
    world = make_world(size=2, substrate=FakeSubstrate(capacity=2))
    await world.warm(specification(maximum_age_seconds=60.0))
    least, most = await watch(world, 80)
    assert (least, most) == (1, 2)
    assert world.substrate.most == 2
    assert len(world.substrate.started) >= 4


async def test_a_replacement_that_cannot_be_started_leaves_the_old_one(make_world: MakeWorld) -> None:
    from eg_knative.errors import LaunchError

    world = make_world(size=1)
    await world.warm(specification(maximum_age_seconds=60.0))
    world.substrate.start_error = LaunchError("The image cannot be pulled.", reason="image")
    await asyncio.sleep(300)
    assert world.count() == {"ready": 1}
    assert 2 < len(world.substrate.started) < 15, "it backs off"
    assert "image" in world.manager.status()["pools"]["python"]["last_error"]


async def test_members_that_are_not_old_stay(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification(maximum_age_seconds=3600.0))
    await asyncio.sleep(3000)
    assert len(world.substrate.started) == 2
