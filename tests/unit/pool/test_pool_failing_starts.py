"""Starts that fail are tried again with growing pauses, and the reason can be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from eg_knative.errors import ChannelError, LaunchError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def test_a_start_that_always_fails_is_tried_ever_less(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    world.substrate.start_error = LaunchError("The program /no/such/python does not exist.", reason="not_found")
    await world.warm(specification(), seconds=60)
    assert 5 <= len(world.substrate.started) <= 7
    pool = world.manager.status()["pools"]["python"]
    assert "/no/such/python" in pool["last_error"]
    assert pool["failed_starts"] == len(world.substrate.started)
    assert world.substrate.running == 0
    await asyncio.sleep(3600)
    assert len(world.substrate.started) < 25


async def test_one_kernelspec_that_fails_does_not_hold_up_another(make_world: MakeWorld) -> None:
    world = make_world(size=2, substrate=FakeSubstrate(boot_seconds=None))
    await world.warm(specification("bad"), specification("good"), seconds=0.2)
    for _ in range(400):
        await asyncio.sleep(0.1)
        for launcher in world.launchers:
            if launcher.member.kernelspec == "good":
                launcher.boot()
            elif launcher.state == "starting":
                launcher.fail_boot()
    assert world.count("good") == {"ready": 2}
    assert world.manager.status()["pools"]["bad"]["failed_starts"] > 3


async def test_a_kernel_that_starts_and_dies_at_once_is_not_started_in_a_circle(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.manager.open()
    world.manager.set_specifications({"python": specification()})
    for _ in range(3000):
        await asyncio.sleep(0.1)
        for launcher in world.launchers:
            if launcher.state == "ready":
                world.substrate.die(launcher.member.name, "it was out of memory")
    assert len(world.substrate.started) < 12
    assert "out of memory" in world.manager.status()["pools"]["python"]["last_error"]


async def test_a_member_that_stays_ready_ends_the_back_off(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    world.substrate.start_error = LaunchError("Try again.", reason="x")
    await world.warm(specification(), seconds=2)
    world.substrate.start_error = None
    await asyncio.sleep(60)
    pool = world.manager.status()["pools"]["python"]
    assert (pool["ready"], pool["failed_starts"], pool["last_error"]) == (1, 0, None)


async def test_a_boot_that_hangs_is_ended_after_the_boot_timeout(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=1, boot_timeout_seconds=30.0, substrate=substrate)
    await world.warm(specification(), seconds=31)
    assert substrate.stopped == substrate.started[:1]
    assert world.kinds("start-failed")[0].reason == "launch_timeout"


async def test_a_start_that_hangs_is_cancelled_after_the_boot_timeout(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(start_seconds=1e6)
    world = make_world(size=1, boot_timeout_seconds=30.0, substrate=substrate)
    await world.warm(specification(), seconds=31)
    assert substrate.undone == substrate.started[:1]


async def test_a_member_without_channels_is_not_ready(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    world.prepare_error = ChannelError("Nobody answered kernel_info.")
    await world.warm(specification(), seconds=3)
    assert world.kinds("ready") == []
    assert world.kinds("start-failed")[0].reason == "channels_not_ready"
    world.prepare_error = None
    await asyncio.sleep(10)
    assert world.count() == {"ready": 1}


async def test_a_claim_is_tried_however_long_the_pool_backs_off(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    world.substrate.start_error = LaunchError("Try again.", reason="x")
    spec = specification()
    await world.warm(spec, seconds=60)
    world.substrate.start_error = None
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.alive
    await asyncio.sleep(2)
    assert world.count() == {"ready": 1, "claimed": 1}, "a claim that was served ends the back-off"


async def test_a_defect_in_a_boot_is_reported_and_does_not_stop_the_pool(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    world.prepare_error = ZeroDivisionError("a defect")
    await world.warm(specification(), seconds=0.7)
    assert "ZeroDivisionError" in world.manager.status()["pools"]["python"]["last_error"]
    world.prepare_error = None
    await asyncio.sleep(10)
    assert world.count() == {"ready": 1}
