"""The end: what is ended, what lives on, and that it does not take for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.errors import ConfigurationError, LaunchError
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def test_detached_members_live_on_and_starts_are_undone(make_world: MakeWorld) -> None:
    world = make_world(size=3, concurrent_starts=1, substrate=FakeSubstrate(start_seconds=1.0))
    spec = specification()
    await world.warm(spec, seconds=3.5)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    before = set(world.substrate.launchers)
    assert world.count()["booting"] == 1
    await world.manager.close(shut_down_kernels=False)
    assert set(world.substrate.launchers) == before
    assert world.substrate.running == len(before)
    assert kernel.member.name in before
    assert world.substrate.closed
    for name in before:
        await world.substrate.stop(member_name=name, grace_seconds=0)


async def test_everything_is_ended(make_world: MakeWorld) -> None:
    world = make_world(size=3, concurrent_starts=1, substrate=FakeSubstrate(start_seconds=1.0))
    spec = specification()
    await world.warm(spec, seconds=3.5)
    await world.manager.claim(request(), specification=spec, timeout=10)
    await world.manager.close(shut_down_kernels=True)
    assert world.substrate.running == 0
    assert world.manager.kernels == {}


async def test_twice_is_once(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    await world.manager.close(shut_down_kernels=True)
    await world.manager.close(shut_down_kernels=True)
    with pytest.raises(LaunchError, match="stopping"):
        await world.manager.claim(request(), specification=specification(), timeout=10)


async def test_never_opened_can_be_closed(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.manager.close(shut_down_kernels=False)


@pytest.mark.parametrize("shut_down", [True, False])
@pytest.mark.parametrize("seconds", [0.05, 0.3, 0.511])
async def test_claims_under_way_fail_and_leave_nothing(make_world: MakeWorld, seconds: float, shut_down: bool) -> None:
    world = make_world(size=0)
    spec = specification()
    await world.warm(spec)
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=60))
    await asyncio.sleep(seconds)
    await world.manager.close(shut_down_kernels=shut_down)
    with pytest.raises(LaunchError):
        await claiming
    assert world.substrate.running == 0


@pytest.mark.parametrize("shut_down", [True, False])
async def test_a_promotion_that_hangs_holds_the_end_up_for_seconds_only(make_world: MakeWorld, shut_down: bool) -> None:
    world = make_world(size=1)
    spec = specification(start="claim")
    await world.warm(spec)
    world.launchers[0].answers = False
    claiming = asyncio.ensure_future(world.manager.claim(request(), specification=spec, timeout=300))
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    await world.manager.close(shut_down_kernels=shut_down)
    assert asyncio.get_running_loop().time() - began < 10
    assert world.substrate.running == 0
    with pytest.raises(LaunchError):
        await claiming


async def test_an_end_that_never_comes_is_given_up_after_a_while(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    await world.warm(specification())
    world.substrate.stop_seconds = 1e6
    began = asyncio.get_running_loop().time()
    await world.manager.close(shut_down_kernels=True)
    assert asyncio.get_running_loop().time() - began < 40
    for name in list(world.substrate.launchers):
        del world.substrate.launchers[name]


async def test_a_substrate_that_cannot_be_opened_closes_the_others(make_world: MakeWorld) -> None:
    class FakeBrokenSubstrate(FakeSubstrate):
        async def open(self, *, gone: object) -> None:
            raise ConfigurationError("The run directory is not private. chmod 700 it.", field="run_directory")

    world = make_world(size=1, substrate=FakeBrokenSubstrate())
    with pytest.raises(ConfigurationError):
        await world.manager.open()


async def test_the_status_can_be_written_as_json_at_any_time(make_world: MakeWorld) -> None:
    import json

    world = make_world(size=2)
    json.dumps(world.manager.status(), allow_nan=False)
    spec = specification()
    await world.warm(spec, seconds=0.3)
    json.dumps(world.manager.status(), allow_nan=False)
    await asyncio.sleep(2)
    await world.manager.claim(request(), specification=spec, timeout=10)
    text = json.dumps(world.manager.status(), allow_nan=False)
    assert "token" not in text
    assert '"draining": false' in text
