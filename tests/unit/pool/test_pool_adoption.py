"""The next gateway finds what the one before it left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import ChannelError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def left_behind(*, size: int = 2, claims: int = 1) -> FakeSubstrate:
    """A substrate that a gateway was detached from."""
    world = World(size=size)
    spec = specification()
    await world.warm(spec)
    for number in range(claims):
        await world.manager.claim(request(kernel_id=f"k-{number}"), specification=spec, timeout=10)
    await asyncio.sleep(2)
    await world.manager.close(shut_down_kernels=False)
    assert world.manager.kernels == {}
    assert all(channels.closed for channels in world.channels), "channels that nobody took are closed"
    assert all(not launcher.holds for launcher in world.launchers)
    return world.substrate


async def test_claimed_kernels_come_back_with_their_record_and_channels(make_world: MakeWorld) -> None:
    world = make_world(size=2, substrate=await left_behind())
    await world.manager.open()
    kernel = world.manager.kernels["k-0"]
    assert kernel.claim.attributes == {"owner": "alice"}
    assert kernel.claim.username == "alice"
    assert kernel.launch.adopted
    assert kernel.alive
    channels = kernel.take_channels()
    assert channels is not None
    assert channels.connection.key == kernel.connection.key  # type: ignore[attr-defined]
    await kernel.restart(10)
    await kernel.shutdown(1)
    assert world.kinds("adopted")


async def test_ready_members_of_the_same_kernelspec_go_to_the_queue(make_world: MakeWorld) -> None:
    substrate = await left_behind()
    started = list(substrate.started)
    world = make_world(size=2, substrate=substrate)
    spec = specification()
    await world.warm(spec)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.hit
    assert kernel.member.name in started


async def test_they_wait_until_the_kernelspecs_are_named(make_world: MakeWorld) -> None:
    substrate = await left_behind()
    world = make_world(size=2, substrate=substrate)
    await world.manager.open()
    await asyncio.sleep(60)
    assert substrate.stopped == []
    world.manager.set_specifications({"python": specification(env={"NEW": "1"})})
    await asyncio.sleep(3)
    assert len(substrate.stopped) == 2, "ready members of a changed kernelspec are retired"
    assert world.manager.status()["pools"]["python"]["claimed"] == 1


async def test_an_id_that_was_adopted_is_taken(make_world: MakeWorld) -> None:
    from eg_knative.errors import DuplicateKernelError

    world = make_world(size=2, substrate=await left_behind())
    await world.warm(specification())
    with pytest.raises(DuplicateKernelError):
        await world.manager.claim(request(kernel_id="k-0"), specification=specification(), timeout=10)


async def test_a_busy_kernel_is_adopted_without_channels(make_world: MakeWorld) -> None:
    world = make_world(size=0, substrate=await left_behind())
    world.prepare_error = ChannelError("busy")
    await world.manager.open()
    assert world.manager.kernels["k-0"].alive
    assert world.manager.kernels["k-0"].take_channels() is None


async def test_a_kernel_that_does_not_answer_holds_up_nobody_and_is_never_ended(make_world: MakeWorld) -> None:
    substrate = await left_behind(claims=2)
    silent = next(launcher for launcher in substrate.launchers.values() if launcher.claim is not None)
    silent.reachable = False
    world = make_world(size=2, substrate=substrate)
    began = asyncio.get_running_loop().time()
    await world.warm(specification())
    assert asyncio.get_running_loop().time() - began < 9
    assert len(world.manager.kernels) == 1
    await asyncio.sleep(1000)
    assert silent.member.name not in substrate.stopped
    silent.speak()
    await asyncio.sleep(100)
    assert len(world.manager.kernels) == 2


async def test_a_member_that_is_still_booting_is_waited_for(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    first = World(size=1, substrate=substrate)
    await first.warm(specification(), seconds=1)
    await first.manager.close(shut_down_kernels=False)
    assert substrate.running == 1
    world = make_world(size=1, substrate=substrate)
    await world.warm(specification(), seconds=1)
    assert world.count() == {"booting": 1}
    world.launchers[0].boot()
    await asyncio.sleep(1)
    assert world.count() == {"ready": 1}
    assert len(substrate.started) == 1


async def test_a_member_that_has_failed_is_cleared_away(make_world: MakeWorld) -> None:
    substrate = await left_behind(claims=0)
    for launcher in substrate.launchers.values():
        launcher.state = "failed"
    world = make_world(size=1, substrate=substrate)
    await world.warm(specification(), seconds=5)
    assert len(substrate.stopped) == 2
    assert world.count() == {"ready": 1}


async def test_the_age_of_adopted_members_counts_from_their_start(make_world: MakeWorld) -> None:
    substrate = await left_behind(claims=0)
    await asyncio.sleep(100)
    world = make_world(size=2, substrate=substrate)
    await world.warm(specification(maximum_age_seconds=60.0), seconds=10)
    assert len(substrate.stopped) == 2
    assert world.count() == {"ready": 2}


async def test_a_kernel_that_was_never_heard_outlives_the_next_gateway_too(make_world: MakeWorld) -> None:
    substrate = await left_behind(size=1)
    for launcher in substrate.launchers.values():
        launcher.reachable = False
    second = World(size=0, substrate=substrate)
    await second.manager.open()
    await asyncio.sleep(100)
    await second.manager.close(shut_down_kernels=False)
    assert substrate.stopped == []
    for launcher in substrate.launchers.values():
        launcher.reachable = True
    third = make_world(size=0, substrate=substrate)
    await third.manager.open()
    assert list(third.manager.kernels) == ["k-0"]
