"""Promotions that are refused or go unanswered: whose fault it is decides what becomes of the member."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import BadRequestError, LauncherRefusedError, LaunchError, LaunchTimeoutError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


@pytest.mark.parametrize(
    ("status", "reason", "field"),
    [
        (422, "working_directory_missing", "working_directory"),
        (422, "bad_environment", "env"),
        (422, "bad_kernel_id", "kernel_id"),
        (400, "bad_request", "username"),
        (413, "body_too_large", None),
    ],
)
async def test_a_bad_request_leaves_the_member_ready_and_names_the_field(
    make_world: MakeWorld, status: int, reason: str, field: str | None
) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    launcher = world.launchers[0]
    launcher.refusal = LauncherRefusedError("There is no directory /nowhere.", reason=reason, status=status, field=field)
    with pytest.raises(BadRequestError) as caught:
        await world.manager.claim(request(), specification=spec, timeout=10)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert "/nowhere" in caught.value.message
    assert isinstance(caught.value.__cause__, LauncherRefusedError)
    await asyncio.sleep(2)
    assert world.count() == {"ready": 1}
    assert len(world.substrate.started) == 1

    launcher.refusal = None
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.hit
    assert kernel.member.name == launcher.member.name


async def test_a_bad_request_without_a_ready_member_leaves_nothing(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    spec = specification()
    await world.warm(spec)
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=10))
    await asyncio.sleep(0.2)
    world.launchers[0].refusal = LauncherRefusedError("No.", reason="working_directory_missing", status=422)
    with pytest.raises(BadRequestError):
        await claiming
    assert world.substrate.running == 0


async def test_a_member_that_cannot_be_reached_is_retired_and_the_next_one_taken(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    first, second = world.launchers
    first.reachable = False  # its hold has not noticed yet
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.hit
    assert kernel.member.name == second.member.name
    await asyncio.sleep(3)
    assert first.member.name in world.substrate.stopped
    assert world.count() == {"ready": 2, "claimed": 1}


async def test_a_member_known_to_be_silent_goes_last(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    first, second = world.launchers
    first.silence()
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.member.name == second.member.name
    assert first.promotions_asked == 0


async def test_an_answer_that_does_not_come_costs_seconds_not_the_launch(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    world.launchers[0].answers = False
    began = asyncio.get_running_loop().time()
    kernel = await world.manager.claim(request(), specification=spec, timeout=30)
    assert kernel.launch.hit
    assert 4.9 < asyncio.get_running_loop().time() - began < 5.2


async def test_not_every_ready_member_is_burned_by_one_claim(make_world: MakeWorld) -> None:
    world = make_world(size=8, concurrent_starts=8)
    spec = specification()
    await world.warm(spec)
    for launcher in world.launchers:
        launcher.reachable = False
    kernel = await world.manager.claim(request(), specification=spec, timeout=60)
    assert not kernel.launch.hit
    assert kernel.alive


async def test_a_kernel_that_cannot_run_is_reported_at_once(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification(start="claim")
    await world.warm(spec)
    first = world.launchers[0]
    first.refusal = LauncherRefusedError("deno: no such file", reason="kernel_failed", status=500)
    with pytest.raises(LaunchError) as caught:
        await world.manager.claim(request(), specification=spec, timeout=60)
    assert caught.value.reason == "kernel_failed"
    assert "deno: no such file" in caught.value.message
    assert first.member.name in world.substrate.stopped, "what was made for the claim is gone when it is reported"
    assert sum(launcher.promotions_asked for launcher in world.launchers) == 0, "the other ready member was not tried"


async def test_a_fresh_process_may_use_the_whole_time_and_no_more(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification(start="claim")
    await world.warm(spec)
    world.launchers[0].answers = False
    began = asyncio.get_running_loop().time()
    with pytest.raises(LaunchTimeoutError):
        await world.manager.claim(request(), specification=spec, timeout=20)
    assert asyncio.get_running_loop().time() - began == pytest.approx(20, abs=0.2)


async def test_channels_that_cannot_be_had_after_a_fresh_start_end_the_member(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    spec = specification(start="claim")
    await world.warm(spec)
    world.prepare_error = OSError("too many open files")
    with pytest.raises(LaunchError) as caught:
        await world.manager.claim(request(), specification=spec, timeout=20)
    assert caught.value.reason == "channels_not_ready"
    assert world.substrate.running == 0


async def test_a_member_that_dies_while_it_is_promoted_is_not_handed_over(make_world: MakeWorld) -> None:
    world = make_world(size=2, substrate=FakeSubstrate())
    spec = specification()
    await world.warm(spec)
    first = world.launchers[0]
    first.promote_seconds = 1.0
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=20))
    await asyncio.sleep(0.8)
    world.substrate.die(first.member.name)
    kernel = await claiming
    assert kernel.member.name != first.member.name
    assert kernel.alive
