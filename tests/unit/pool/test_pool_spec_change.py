"""A changed kernelspec retires its ready members; claimed ones are their users'."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.unit.pool.pool_fakes import World, request, specification

MakeWorld = Callable[..., World]


async def test_ready_members_are_replaced_and_claimed_ones_stay(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec, newer = specification(), specification(env={"NEW": "1"})
    await world.warm(spec)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    await asyncio.sleep(2)
    world.manager.set_specifications({"python": newer})
    await asyncio.sleep(3)
    digests = sorted(launcher.member.specification_digest for launcher in world.launchers)
    assert digests == sorted([spec.digest, newer.digest, newer.digest])
    assert kernel.alive
    assert [event.reason for event in world.kinds("retired")] == ["spec-changed"] * 2


async def test_a_boot_of_the_old_kernelspec_is_not_handed_out(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec, newer = specification(), specification(env={"NEW": "1"})
    await world.warm(spec, seconds=0.3)
    world.manager.set_specifications({"python": newer})
    kernel = await world.manager.claim(request(), specification=newer, timeout=10)
    assert kernel.member.specification_digest == newer.digest
    await asyncio.sleep(3)
    assert {launcher.member.specification_digest for launcher in world.launchers} == {newer.digest}


async def test_a_removed_kernelspec_keeps_nothing_ready(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification())
    world.manager.set_specifications({})
    await asyncio.sleep(1)
    assert world.substrate.running == 0
    assert world.manager.status()["pools"]["python"]["served"] is False


async def test_what_members_are_not_started_from_changes_nothing(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification(maximum_age_seconds=100.0))
    world.manager.set_specifications({"python": specification(maximum_age_seconds=200.0)})
    await asyncio.sleep(2)
    assert len(world.substrate.started) == 2


async def test_a_change_ends_the_back_off(make_world: MakeWorld) -> None:
    from eg_knative.errors import LaunchError

    world = make_world(size=1)
    world.substrate.start_error = LaunchError("No such program.", reason="not_found")
    await world.warm(specification(), seconds=100)
    assert world.manager.status()["pools"]["python"]["next_try_in_seconds"] > 10
    world.substrate.start_error = None
    world.manager.set_specifications({"python": specification(env={"FIXED": "1"})})
    await asyncio.sleep(1)
    assert world.count() == {"ready": 1}
    assert world.manager.status()["pools"]["python"]["last_error"] is None
