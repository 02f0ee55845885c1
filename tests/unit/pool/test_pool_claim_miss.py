"""A claim without a ready member becomes a normal launch, and says why: each reason of the fixed list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from eg_knative.pool.events import MISS_REASONS
from tests.unit.pool.pool_fakes import FakeSubstrate, World, request, specification

MakeWorld = Callable[..., World]


async def claim_reason(world: World, **changes: object) -> str | None:
    spec = specification()
    kernel = await world.manager.claim(request(**changes), specification=spec, timeout=30)  # type: ignore[arg-type]
    assert kernel.launch.hit == (kernel.launch.miss_reason is None)
    return kernel.launch.miss_reason


async def test_empty(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    spec = specification(floor=0, ceiling=1)
    await world.warm(spec)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.miss_reason == "empty"
    assert kernel.alive
    assert kernel.channels is not None
    assert kernel.member.name == world.substrate.started[0]


async def test_booting_waits_for_the_boot_that_is_under_way(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification(), seconds=0.3)
    assert world.count() == {"booting": 1}
    began = asyncio.get_running_loop().time()
    assert await claim_reason(world) == "booting"
    assert asyncio.get_running_loop().time() - began < 0.25, "the rest of a boot of 0.51 s"
    assert world.manager.kernels[next(iter(world.manager.kernels))].member.name == world.substrate.started[0]


async def test_several_claims_share_no_boot(make_world: MakeWorld) -> None:
    world = make_world(size=2, concurrent_starts=2)
    spec = specification()
    await world.warm(spec, seconds=0.3)
    kernels = await asyncio.gather(*(world.manager.claim(request(), specification=spec, timeout=30) for _ in range(5)))
    assert len({kernel.member.name for kernel in kernels}) == 5
    assert [kernel.launch.miss_reason for kernel in kernels].count("booting") >= 2


async def test_quota(make_world: MakeWorld) -> None:
    world = make_world(size=2, total=0)
    await world.warm(specification())
    assert "all pools together" in world.manager.status()["pools"]["python"]["limited"]
    assert await claim_reason(world) == "quota"


async def test_disabled(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification(enabled=False)
    await world.warm(spec)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.miss_reason == "disabled"
    assert len(world.substrate.started) == 1


async def test_spec_changed_with_the_pool_behind_the_claim(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    newer = specification(env={"NEW": "1"})
    kernel = await world.manager.claim(request(), specification=newer, timeout=10)
    assert kernel.launch.miss_reason == "spec-changed"
    assert kernel.member.specification_digest == newer.digest


@pytest.mark.parametrize("seconds", [None, 0.0, 0.05])
async def test_spec_changed_just_before_the_claim(make_world: MakeWorld, seconds: float | None) -> None:
    world = make_world(size=1)
    await world.warm(specification())
    newer = specification(env={"NEW": "1"})
    world.manager.set_specifications({"python": newer})
    if seconds is not None:
        await asyncio.sleep(seconds)
    kernel = await world.manager.claim(request(), specification=newer, timeout=10)
    assert kernel.launch.miss_reason == "spec-changed"


async def test_age(make_world: MakeWorld) -> None:
    world = make_world(size=1, total=1)
    spec = specification(maximum_age_seconds=60.0)
    await world.warm(spec)
    while not world.kinds("retired"):
        await asyncio.sleep(0.05)
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.miss_reason == "age"


async def test_import_time_variable_gets_a_fresh_process_in_the_ready_member(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification(import_time_variables=("OMP_NUM_THREADS",))
    await world.warm(spec)
    ready = world.launchers[0].member.name
    kernel = await world.manager.claim(request(env={"OMP_NUM_THREADS": "4"}), specification=spec, timeout=10)
    assert kernel.member.name == ready
    assert (kernel.launch.hit, kernel.launch.miss_reason) == (False, "import-time-variable")
    assert kernel.launch.started == "fresh"
    assert kernel.launch.notice
    first, second = world.channels[:2]
    assert first.closed, "channels of the process that was replaced are worth nothing"
    assert second is kernel.channels


async def test_misses_are_counted_by_reason(make_world: MakeWorld) -> None:
    world = make_world(size=0)
    spec = specification(floor=0, ceiling=1)
    await world.warm(spec)
    for _ in range(3):
        await world.manager.claim(request(), specification=spec, timeout=10)
    misses = world.manager.status()["pools"]["python"]["misses"]
    assert set(misses) == set(MISS_REASONS)
    assert misses["empty"] + misses["booting"] == 3
    assert world.manager.status()["totals"]["misses"] == 3


async def test_a_process_that_names_no_kernelspecs_learns_them_from_claims(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    await world.manager.open()
    assert await claim_reason(world) == "empty"
    await asyncio.sleep(2)
    assert await claim_reason(world) is None


@pytest.mark.parametrize("claims", [3, 20])
async def test_a_drained_pool_is_slow_and_never_an_error(make_world: MakeWorld, claims: int) -> None:
    world = make_world(size=2, concurrent_launches=4)
    spec = specification()
    await world.warm(spec)
    kernels = await asyncio.gather(*(world.manager.claim(request(), specification=spec, timeout=60) for _ in range(claims)))
    assert len({kernel.member.name for kernel in kernels}) == claims
    assert sum(kernel.launch.hit for kernel in kernels) >= 2
    await asyncio.sleep(3)
    assert world.count() == {"ready": 2, "claimed": claims}


async def test_a_boot_that_hangs_is_not_waited_for(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=1, substrate=substrate)
    await world.warm(specification(), seconds=0.3)
    substrate.boot_seconds = 0.4
    began = asyncio.get_running_loop().time()
    assert await claim_reason(world) == "booting"
    assert asyncio.get_running_loop().time() - began < 8


async def test_a_boot_that_fails_is_followed_by_a_start_for_the_claim(make_world: MakeWorld) -> None:
    substrate = FakeSubstrate(boot_seconds=None)
    world = make_world(size=1, substrate=substrate)
    await world.warm(specification(), seconds=0.3)
    claiming = asyncio.ensure_future(claim_reason(world))
    await asyncio.sleep(0.05)
    substrate.boot_seconds = 0.4
    world.launchers[0].fail_boot()
    assert await claiming == "booting"
