"""A registration ends with its launch, whichever way that goes."""

from __future__ import annotations

import asyncio

import pytest

from eg_knative.errors import LaunchError
from eg_knative.wire.eg_payload import PrivateConnectionInfo
from eg_knative.wire.waiting_launches import WaitingLaunches
from tests.unit.push.payloads import KERNEL_ID, connection_information


async def test_what_was_delivered_is_taken_once() -> None:
    launches = WaitingLaunches()
    launches.register(KERNEL_ID, owner=None)
    taking = asyncio.create_task(launches.take(KERNEL_ID, timeout=5))
    await asyncio.sleep(0)
    launches.deliver(PrivateConnectionInfo(connection_information()))
    assert KERNEL_ID not in launches  # a second payload finds nobody
    assert (await taking)["shell_port"] == 40001
    assert launches.registered == 0
    with pytest.raises(LaunchError):
        await launches.take(KERNEL_ID, timeout=0)


async def test_waiting_too_short_keeps_the_registration() -> None:
    launches = WaitingLaunches()
    launches.register(KERNEL_ID, owner=None)
    with pytest.raises(asyncio.TimeoutError):
        await launches.take(KERNEL_ID, timeout=0.01)
    assert list(launches) == [KERNEL_ID]


async def test_a_launch_that_fails_takes_its_registration_along() -> None:
    launches = WaitingLaunches()

    async def launch() -> None:
        launches.register(KERNEL_ID, owner=asyncio.current_task())
        raise RuntimeError("the launch failed")

    with pytest.raises(RuntimeError):
        await asyncio.create_task(launch())
    await asyncio.sleep(0)
    assert launches.registered == 0


async def test_a_cancelled_launch_takes_its_registration_along() -> None:
    launches = WaitingLaunches()

    async def launch() -> None:
        launches.register(KERNEL_ID, owner=asyncio.current_task())
        await launches.take(KERNEL_ID, timeout=60)

    task = asyncio.create_task(launch())
    await asyncio.sleep(0.01)
    assert launches.registered == 1
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert launches.registered == 0


async def test_the_end_of_an_earlier_launch_leaves_the_restarted_one_alone() -> None:
    launches = WaitingLaunches()

    async def launch() -> None:
        launches.register(KERNEL_ID, owner=asyncio.current_task())

    earlier = asyncio.create_task(launch())
    await earlier
    launches.register(KERNEL_ID, owner=None)
    await asyncio.sleep(0)
    assert list(launches) == [KERNEL_ID]


async def test_age_and_number_are_bounded() -> None:
    now = 0.0
    launches = WaitingLaunches(limit=3, seconds=10, clock=lambda: now)
    for number in range(5):
        launches.register(f"kernel-{number}", owner=None)
    assert list(launches) == ["kernel-2", "kernel-3", "kernel-4"]
    now = 10.0
    launches.register("kernel-9", owner=None)
    assert list(launches) == ["kernel-9"]
