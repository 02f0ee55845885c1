"""However late the view, there are never more members than limits allow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


@pytest.mark.parametrize("lag", [0.0, 1.0, 60.0])
async def test_the_pool_never_exceeds_its_size_while_the_view_lags(make_world: MakeWorld, lag: float) -> None:
    substrate = FakeSubstrate(capacity=50, start_seconds=2.0)
    substrate.lag_seconds = lag
    world = make_world(size=5, concurrent_starts=10, substrate=substrate)
    await world.warm(specification(), seconds=200)
    assert world.count() == {"ready": 5}
    assert substrate.most == 5
    assert len(substrate.started) == 5


async def test_starts_on_their_way_count_against_the_room(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(capacity=3, start_seconds=5.0)
    substrate.lag_seconds = 4.0
    world = make_world(size=10, concurrent_starts=10, substrate=substrate)
    await world.warm(specification(), seconds=100)
    assert substrate.most == 3
    assert world.count() == {"ready": 3}
    assert "the machine is full" in world.manager.status()["pools"]["python"]["limited"]


async def test_events_in_a_row_start_each_member_once(make_world: MakeWorld) -> None:
    world = make_world(size=4, concurrent_starts=1, substrate=FakeSubstrate(start_seconds=1.0))
    spec = specification()
    await world.manager.open()
    for _ in range(50):
        world.manager.set_specifications({"python": spec})
        await asyncio.sleep(0.01)
    await asyncio.sleep(20)
    assert len(world.substrate.started) == 4


async def test_boots_at_once_are_bounded(make_world: MakeWorld) -> None:
    world = make_world(size=9, concurrent_starts=3)
    await world.manager.open()
    world.manager.set_specifications({"python": specification()})
    most = 0
    for _ in range(100):
        await asyncio.sleep(0.05)
        most = max(most, world.count().get("booting", 0))
    assert most == 3
    assert world.count() == {"ready": 9}


async def test_starts_are_capped_in_rate(make_world: MakeWorld) -> None:
    world = make_world(size=20, concurrent_starts=20, refill_per_second=2.0)
    await world.warm(specification(), seconds=3.0)
    assert 6 <= len(world.substrate.started) <= 8, "two at once, then two a second"
    await asyncio.sleep(10)
    assert world.count() == {"ready": 20}


async def test_launches_of_claims_at_once_are_bounded(make_world: MakeWorld) -> None:
    world = make_world(size=0, concurrent_launches=3)
    spec = specification()
    await world.warm(spec)
    claims = [asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=60)) for _ in range(9)]
    most = 0
    while not all(claim.done() for claim in claims):
        await asyncio.sleep(0.05)
        most = max(most, world.count().get("booting", 0))
    assert most == 3
