"""A claim that is cancelled, times out or fails leaves nothing behind, wherever it was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import LaunchError, LaunchTimeoutError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def cancel_after(world: World, seconds: float, **spec_changes: object) -> None:
    spec = specification(**spec_changes)  # type: ignore[arg-type]
    claiming = asyncio.ensure_future(world.manager.claim(request(kernel_id="k"), specification=spec, timeout=60))
    await asyncio.sleep(seconds)
    claiming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await claiming


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.15, 0.3, 0.505, 0.511])
async def test_cancelled_in_any_phase_of_a_launch(make_world: MakeWorld, seconds: float) -> None:
    world = make_world(size=0)
    await world.warm(specification())
    await cancel_after(world, seconds)
    await asyncio.sleep(1)
    assert world.substrate.running == 0
    assert world.manager.kernels == {}
    assert all(channels.closed for channels in world.channels)
    assert world.manager.status()["pools"]["python"]["members"] == []
    assert world.kinds("claim-failed")[0].reason == "cancelled"


async def test_cancelled_during_the_promotion_the_member_is_never_offered_again(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    launcher = world.launchers[0]
    launcher.promote_seconds = 1.0
    await cancel_after(world, 0.7)
    assert launcher.claims_accepted, "the launcher had accepted it already"
    await asyncio.sleep(2)
    assert launcher.member.name in world.substrate.stopped
    assert world.count() == {"ready": 1}


async def test_cancelled_while_it_waits_for_a_boot_of_the_pool_the_boot_goes_on(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification(), seconds=0.3)
    await cancel_after(world, 0.1)
    await asyncio.sleep(3)
    assert world.count() == {"ready": 1}
    assert world.substrate.running == 1


async def test_cancelled_at_the_moment_the_boot_is_ready(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec, seconds=0.3)
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=60))
    world.manager.on_event.append(lambda event: event.kind == "ready" and claiming.cancel())
    with pytest.raises(asyncio.CancelledError):
        await claiming
    await asyncio.sleep(3)
    assert world.count() == {"ready": 1}
    kernel = await world.manager.claim(request(), specification=spec, timeout=60)
    assert kernel.launch.hit


async def test_cancelled_while_it_queues_for_a_launch(make_world: MakeWorld) -> None:
    world = make_world(size=0, concurrent_launches=1)
    spec = specification()
    await world.warm(spec)
    first = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=60))
    await asyncio.sleep(0.01)
    await cancel_after(world, 0.1)
    await first
    assert world.substrate.running == 1
    assert (await world.manager.claim(request(), specification=spec, timeout=60)).alive, "the place was given back"


async def test_a_launch_that_takes_too_long_is_undone_before_it_is_reported(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=0, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    began = asyncio.get_running_loop().time()
    with pytest.raises(LaunchTimeoutError) as caught:
        await world.manager.claim(request(), specification=spec, timeout=7)
    assert asyncio.get_running_loop().time() - began == pytest.approx(7, abs=0.2)
    assert substrate.running == 0
    assert "python" in caught.value.message
    assert "launch_timeout_seconds" in caught.value.message


async def test_time_that_runs_out_in_the_queue(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=0, concurrent_launches=1, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    first = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=30))
    await asyncio.sleep(0.01)
    with pytest.raises(LaunchTimeoutError):
        await world.manager.claim(request(), specification=spec, timeout=3)
    assert len(substrate.started) == 1, "nothing was made for it"
    world.launchers[0].boot()
    assert (await first).alive


async def test_a_doomed_start_is_reported_at_once_with_its_reason(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate()
    substrate.start_error = LaunchError("The program /no/such/python does not exist.", reason="not_found")
    world = make_world(size=0, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    began = asyncio.get_running_loop().time()
    with pytest.raises(LaunchError) as caught:
        await world.manager.claim(request(), specification=spec, timeout=40)
    assert caught.value is substrate.start_error
    assert asyncio.get_running_loop().time() - began < 0.5
    assert world.manager.status()["pools"]["python"]["members"] == []


async def test_a_kernel_that_ends_while_it_boots_is_reported_at_once_with_its_exit(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=0, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=40))
    await asyncio.sleep(0.2)
    world.launchers[0].fail_boot("No module named ipykernel")
    with pytest.raises(LaunchError) as caught:
        await claiming
    assert "No module named ipykernel" in caught.value.message
    assert caught.value.reason == "exited"
    assert substrate.running == 0


async def test_a_launcher_that_dies_while_it_boots_is_reported_at_once(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=0, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=40))
    await asyncio.sleep(0.2)
    substrate.die(world.launchers[0].member.name, "the launcher was killed by signal 9")
    with pytest.raises(LaunchError, match="signal 9"):
        await claiming
    assert world.manager.status()["pools"]["python"]["members"] == []


async def test_an_end_that_fails_is_tried_again_until_it_succeeds(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    spec = specification()
    await world.warm(spec)
    kernel = await world.manager.claim(request(), specification=spec, timeout=40)
    world.substrate.stop_errors = 3
    await kernel.shutdown(1)
    assert world.substrate.running == 0
