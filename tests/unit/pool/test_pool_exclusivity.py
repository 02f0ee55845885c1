"""One member, one claim: whatever races."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import BadRequestError, DuplicateKernelError, LauncherRefusedError
from tests.unit.pool.pool_fakes import World, request, specification

MakeWorld = Callable[..., World]


async def test_claims_at_the_same_moment_get_different_members(make_world: MakeWorld) -> None:
    world = make_world(size=5)
    spec = specification()
    await world.warm(spec)
    kernels = await asyncio.gather(*(world.manager.claim(request(), specification=spec, timeout=10) for _ in range(5)))
    assert len({kernel.member.name for kernel in kernels}) == 5
    assert all(len(launcher.claims_accepted) <= 1 for launcher in world.launchers)


async def test_a_member_that_somebody_else_has_claimed_is_left_alone(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    theirs = world.launchers[0]
    theirs.claim = request(kernel_id="theirs")  # the news has not come with a beat yet
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.member.name != theirs.member.name
    assert kernel.launch.hit
    await asyncio.sleep(3)
    assert theirs.member.name not in world.substrate.stopped, "it may hold somebody's work"
    assert world.kinds("released")
    await world.substrate.stop(member_name=theirs.member.name, grace_seconds=0)


async def test_a_beat_that_shows_another_claim_takes_the_member_out(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    theirs = world.launchers[0]
    theirs.change(state="claimed", claim=request(kernel_id="theirs"))
    await asyncio.sleep(3)
    assert world.count() == {"ready": 1}
    assert theirs.member.name not in world.substrate.stopped
    await world.substrate.stop(member_name=theirs.member.name, grace_seconds=0)


async def test_an_id_that_is_taken_makes_nothing(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10)
    await asyncio.sleep(2)
    started = list(world.substrate.started)
    with pytest.raises(DuplicateKernelError) as caught:
        await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10)
    assert caught.value.field == "KERNEL_ID"
    await asyncio.sleep(2)
    assert world.substrate.started == started


async def test_of_two_claims_with_one_id_at_once_one_is_served(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    outcomes = await asyncio.gather(
        *(world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10) for _ in range(4)), return_exceptions=True
    )
    assert sum(isinstance(outcome, DuplicateKernelError) for outcome in outcomes) == 3
    assert list(world.manager.kernels) == ["k"]
    assert world.manager.status()["totals"]["claimed"] == 1


async def test_the_id_is_free_again_after_a_failure_and_after_the_end(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    world.launchers[0].refusal = LauncherRefusedError("No.", reason="bad_environment", status=422)
    with pytest.raises(BadRequestError):
        await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10)
    world.launchers[0].refusal = None
    kernel = await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10)
    await kernel.shutdown(1)
    assert await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10) is not kernel
