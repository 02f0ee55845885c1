"""A claim that finds a ready member: one promotion, the key changed, a replacement under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.unit.pool.pool_fakes import World, request, specification

MakeWorld = Callable[..., World]


async def test_a_ready_member_is_promoted_once_and_handed_over(make_world: MakeWorld) -> None:
    world = make_world(size=2)
    spec = specification()
    await world.warm(spec)
    assert world.count() == {"ready": 2}

    asked = request(kernel_id="k-1")
    kernel = await world.manager.claim(asked, specification=spec, timeout=10)

    launcher = world.launcher(kernel.member.name)
    assert launcher.claims_accepted == [asked.claim_id]
    assert launcher.promotions_asked == 1
    assert kernel.launch.hit
    assert kernel.launch.miss_reason is None
    assert kernel.launch.started == "running"
    assert {"queue", "promote", "prepare", "launcher.total"} == set(kernel.launch.phases)
    assert {"start", "boot", "prepare"} == set(kernel.launch.boot_phases)
    assert world.manager.kernels == {"k-1": kernel}
    assert kernel.claim.attributes == {"owner": "alice"}
    assert kernel.alive


async def test_prepared_channels_get_the_new_key_and_are_handed_over_once(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    asked = request()
    kernel = await world.manager.claim(asked, specification=spec, timeout=10)

    channels = kernel.take_channels()
    assert channels is world.channels[0]
    assert channels.connection.key == asked.claim_id  # type: ignore[attr-defined]
    assert world.channels[0].rekeyed == 1
    assert kernel.take_channels() is None
    await kernel.shutdown(0)
    assert not world.channels[0].closed, "who took the channels closes them"


async def test_the_member_that_waited_longest_goes_first(make_world: MakeWorld) -> None:
    world = make_world(size=3)
    spec = specification()
    await world.warm(spec)
    first = world.substrate.started[:1]
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert [kernel.member.name] == first


async def test_the_place_is_filled_again_when_the_first_cell_has_had_its_time(make_world: MakeWorld) -> None:
    world = make_world(size=2, refill_delay_seconds=0.2)
    spec = specification()
    await world.warm(spec)
    await world.manager.claim(request(), specification=spec, timeout=10)
    await asyncio.sleep(0.15)
    assert world.count() == {"ready": 1, "claimed": 1}
    await asyncio.sleep(0.1)
    assert world.count() == {"ready": 1, "booting": 1, "claimed": 1}
    await asyncio.sleep(2)
    assert world.count() == {"ready": 2, "claimed": 1}


async def test_a_pool_that_is_empty_is_filled_at_once(make_world: MakeWorld) -> None:
    world = make_world(size=1, refill_delay_seconds=10.0)
    spec = specification()
    await world.warm(spec)
    await world.manager.claim(request(), specification=spec, timeout=10)
    await asyncio.sleep(0.05)
    assert world.count() == {"booting": 1, "claimed": 1}


async def test_claims_one_after_the_other_do_not_put_the_refill_off(make_world: MakeWorld) -> None:
    world = make_world(size=5, refill_delay_seconds=0.5)
    spec = specification()
    await world.warm(spec)
    for _ in range(3):
        await world.manager.claim(request(), specification=spec, timeout=10)
        await asyncio.sleep(0.2)
    assert world.count()["booting"] > 0


async def test_the_hit_is_counted_and_told(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification()
    await world.warm(spec)
    await world.manager.claim(request(), specification=spec, timeout=10)
    assert world.manager.status()["pools"]["python"]["hits"] == 1
    (event,) = world.kinds("claimed")
    assert event.reason is None
    assert event.seconds is not None
    assert set(event.phases) >= {"queue", "promote"}


async def test_a_kernel_that_starts_at_its_claim_is_a_hit_in_a_booted_container(make_world: MakeWorld) -> None:
    world = make_world(size=1)
    spec = specification(start="claim")
    await world.warm(spec)
    assert world.channels == [], "there is no kernel to prepare channels for"
    kernel = await world.manager.claim(request(), specification=spec, timeout=10)
    assert kernel.launch.hit
    assert kernel.launch.started == "fresh"
    assert kernel.channels is not None


async def test_a_listener_that_fails_harms_nobody(make_world: MakeWorld) -> None:
    world = make_world(size=1)

    def fail(event: object) -> None:
        raise RuntimeError("a defect of a listener")

    world.manager.on_event.insert(0, fail)
    spec = specification()
    await world.warm(spec)
    assert (await world.manager.claim(request(), specification=spec, timeout=10)).alive
    assert world.kinds("claimed")
