"""Members that die, fall silent or come back; what whoever looks after a claimed kernel hears of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from eg_knative.errors import LauncherUnreachableError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import KernelEvent
from eg_knative.wire.control import KernelExit
from tests.unit.pool.pool_fakes import FakeLauncher, World, request, specification

MakeWorld = Callable[..., World]


async def claimed(make_world: MakeWorld) -> tuple[World, ClaimedKernel, FakeLauncher, list[KernelEvent]]:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    kernel = await world.manager.claim(request(kernel_id="k"), specification=spec, timeout=10)
    await asyncio.sleep(2)
    heard: list[KernelEvent] = []
    kernel.add_listener(heard.append)
    return world, kernel, world.launcher(kernel.member.name), heard


def kinds(heard: list[KernelEvent]) -> list[str]:
    return [event.kind for event in heard if event.kind != "beat"]


async def test_a_ready_member_that_dies_is_replaced(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification())
    world.substrate.die(world.launchers[0].member.name)
    assert world.count()["ready"] == 1
    await asyncio.sleep(4)
    assert world.count() == {"ready": 2}
    assert world.kinds("died")[0].message == "the launcher was killed"


async def test_a_ready_member_whose_kernel_was_restarted_is_replaced(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    first = world.launchers[0]
    first.change(generation=2)
    await asyncio.sleep(4)
    assert world.count() == {"ready": 1}
    assert first.member.name in world.substrate.stopped


async def test_a_ready_member_that_stays_silent_is_replaced(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    first = world.launchers[0]
    first.silence()
    await asyncio.sleep(10)
    assert first.member.name not in world.substrate.stopped
    await asyncio.sleep(10)
    assert first.member.name in world.substrate.stopped
    assert world.count() == {"ready": 1}


async def test_a_ready_member_that_is_heard_again_stays(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    first = world.launchers[0]
    first.silence()
    await asyncio.sleep(10)
    first.speak()
    await asyncio.sleep(60)
    assert list(world.substrate.launchers) == [first.member.name]


async def test_a_claimed_kernel_whose_launcher_dies_is_gone(make_world: MakeWorld) -> None:
    world, kernel, launcher, heard = await claimed(make_world)
    channels = world.channels[0]
    world.substrate.die(launcher.member.name, "it was out of memory")
    assert kinds(heard) == ["lost", "gone"]
    assert heard[-1].message == "it was out of memory"
    assert not kernel.alive
    assert channels.closed, "nobody had taken them"
    assert "k" not in world.manager.kernels
    with pytest.raises(LauncherUnreachableError, match="out of memory"):
        await kernel.restart(10)
    await kernel.shutdown(1)
    await asyncio.sleep(2)
    assert world.count() == {"ready": 1}


async def test_a_changed_boot_id_is_the_end(make_world: MakeWorld) -> None:
    world, kernel, launcher, heard = await claimed(make_world)
    launcher.change(boot_id="another")
    assert kinds(heard) == ["gone"]
    assert not kernel.alive
    await asyncio.sleep(1)
    assert launcher.member.name in world.substrate.stopped


async def test_a_lost_hold_is_no_death(make_world: MakeWorld) -> None:
    world, kernel, launcher, heard = await claimed(make_world)
    launcher.silence()
    await asyncio.sleep(3600)
    assert kernel.alive
    launcher.speak()
    assert kinds(heard) == ["lost", "found"]
    assert launcher.member.name not in world.substrate.stopped


async def test_a_restart_in_place_is_told_once(make_world: MakeWorld) -> None:
    _, kernel, launcher, heard = await claimed(make_world)
    before = kernel.connection
    assert await kernel.restart(10) == before
    assert kinds(heard) == ["restarting", "restarted"]
    assert kernel.kernel_generation == launcher.generation == 2
    launcher.change()
    assert kinds(heard) == ["restarting", "restarted"]


async def test_a_kernel_that_dies_and_is_restarted_by_its_launcher(make_world: MakeWorld) -> None:
    _, kernel, launcher, heard = await claimed(make_world)
    ended = KernelExit(generation=1, code=None, signal=11, reason="signalled", message="SIGSEGV", restarted=True)
    launcher.change(kernel_state="restarting", exit=ended)
    assert kernel.alive
    launcher.change(kernel_state="idle", generation=2)
    assert kinds(heard) == ["died", "restarting", "restarted"]
    assert heard[0].exit == ended
    launcher.change(kernel_state="restarting", exit=dataclasses.replace(ended, generation=2))
    launcher.change(kernel_state="idle", generation=3)
    assert kinds(heard) == ["died", "restarting", "restarted"] * 2


async def test_a_kernel_that_dies_for_good(make_world: MakeWorld) -> None:
    _, kernel, launcher, heard = await claimed(make_world)
    ended = KernelExit(generation=1, code=1, signal=None, reason="exited", message="exit 1", restarted=False)
    launcher.change(state="failed", kernel_state="dead", exit=ended)
    assert kinds(heard) == ["died"]
    assert not kernel.alive


async def test_a_failed_restart_is_the_callers_and_can_be_tried_again(make_world: MakeWorld) -> None:
    _, kernel, launcher, heard = await claimed(make_world)
    launcher.reachable = False
    with pytest.raises(LauncherUnreachableError):
        await kernel.restart(10)
    launcher.reachable = True
    await kernel.restart(10)
    assert kinds(heard) == ["restarting", "died", "restarting", "restarted"]


async def test_shutting_down_ends_the_member_once(make_world: MakeWorld) -> None:
    world, kernel, launcher, heard = await claimed(make_world)
    await asyncio.gather(kernel.shutdown(1), kernel.shutdown(1), kernel.shutdown(0))
    await kernel.shutdown(1)
    assert world.substrate.stopped.count(launcher.member.name) == 1
    assert kinds(heard) == ["gone"]
    assert "k" not in world.manager.kernels


async def test_a_listener_can_be_taken_off_and_beats_are_told(make_world: MakeWorld) -> None:
    _, kernel, launcher, _heard = await claimed(make_world)
    more: list[KernelEvent] = []
    remove = kernel.add_listener(more.append)
    launcher.change(kernel_state="busy")
    assert [event.kind for event in more] == ["beat"]
    assert more[0].beat is not None
    assert more[0].beat.kernel_state == "busy"
    remove()
    remove()
    launcher.change(kernel_state="idle")
    assert len(more) == 1
    assert kernel.latest_beat is not None
    assert kernel.latest_beat.kernel_state == "idle"


async def test_usage_is_the_launchers(make_world: MakeWorld) -> None:
    _, kernel, _, _ = await claimed(make_world)
    assert (await kernel.usage()).processes == 1
