"""Floors, ceilings, the total, the substrate's room; and a person goes before a spare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import LaunchError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def test_the_size_is_floor_and_ceiling_of_who_sets_neither(make_world: MakeWorld) -> None:
    world = make_world(size=3)
    await world.warm(specification("a"), specification("b", floor=1, ceiling=1), specification("c", floor=0))
    status = world.manager.status()["pools"]
    assert {name: (pool["floor"], pool["ceiling"], pool["ready"]) for name, pool in status.items()} == {
        "a": (3, 3, 3),
        "b": (1, 1, 1),
        "c": (0, 3, 0),
    }


async def test_the_total_bounds_all_pools_together(make_world: MakeWorld) -> None:
    world = make_world(size=3, total=4)
    await world.warm(specification("a"), specification("b"))
    assert world.manager.status()["totals"]["ready"] == 4
    assert world.substrate.most == 4
    assert "all pools together may keep 4" in world.manager.status()["pools"]["b"]["limited"]


async def test_claimed_kernels_do_not_count_against_the_total(make_world: MakeWorld) -> None:
    world = make_world(size=2, total=2)
    spec = specification()
    await world.warm(spec)
    for _ in range(4):
        assert (await world.manager.claim(request(), specification=spec, timeout=10)).launch.hit
        await asyncio.sleep(2)
    assert world.count() == {"ready": 2, "claimed": 4}


async def test_a_launch_in_a_full_substrate_ends_a_spare_of_another_kernelspec(make_world: MakeWorld) -> None:
    world = make_world(size=0, substrate=FakeSubstrate(capacity=3))
    spare, wanted = specification("spare", floor=3, ceiling=3), specification("wanted")
    await world.warm(spare, wanted)
    kernel = await world.manager.claim(request(), specification=wanted, timeout=10)
    assert kernel.alive
    assert [event.reason for event in world.kinds("retired")] == ["evicted"]
    assert world.substrate.most <= 3
    await asyncio.sleep(5)
    assert world.count("spare") == {"ready": 2}


async def test_a_launch_in_a_substrate_full_of_kernels_gets_the_substrates_own_answer(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(capacity=1)
    world = make_world(size=0, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    await world.manager.claim(request(), specification=spec, timeout=10)
    with pytest.raises(LaunchError, match="Shut kernels down"):
        await world.manager.claim(request(), specification=spec, timeout=10)


async def test_less_room_than_before_ends_spares(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification("a"), specification("b"))
    world.manager.set_specifications({"a": specification("a"), "b": specification("b", floor=0, ceiling=0)})
    await asyncio.sleep(1)
    assert world.manager.status()["totals"]["ready"] == 2
    assert world.count("b") == {}
    assert {event.reason for event in world.kinds("retired")} == {"surplus"}


async def test_claims_make_a_pool_grow_to_its_ceiling_and_quiet_shrinks_it(make_world: MakeWorld) -> None:
    world = make_world(size=1, substrate=FakeSubstrate(boot_seconds=20.0))
    spec = specification(floor=1, ceiling=3)
    await world.warm(spec, seconds=60)
    assert world.count() == {"ready": 1}
    kernels = []
    for _ in range(6):
        kernels.append(await world.manager.claim(request(), specification=spec, timeout=100))
        await asyncio.sleep(30)
    await asyncio.sleep(100)
    assert world.count()["ready"] == 3
    for kernel in kernels:
        await kernel.shutdown(0)
    await asyncio.sleep(8 * 3600.0)
    assert world.count() == {"ready": 1}


async def test_an_unknown_substrate_is_refused_by_name(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    await world.warm()
    import dataclasses

    with pytest.raises(LaunchError, match="moon"):
        await world.manager.claim(request(), specification=dataclasses.replace(specification(), substrate="moon"), timeout=10)
