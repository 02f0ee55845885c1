from __future__ import annotations

import asyncio

import pytest

from eg_knative.wire.deadline import within


async def quick() -> int:
    return 7


async def test_the_result_in_time() -> None:
    assert await within(1, quick()) == 7


async def test_the_error_in_time() -> None:
    async def wrong() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await within(1, wrong())


async def test_late_work_is_ended_before_the_caller_goes_on() -> None:
    ended = False

    async def slow() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended = True

    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, slow())
    assert ended


async def test_a_cancellation_beside_the_result_is_not_swallowed() -> None:
    gate = asyncio.get_running_loop().create_future()

    async def waiting() -> int:
        await gate
        return 7

    task = asyncio.create_task(within(60, waiting()))
    await asyncio.sleep(0.01)
    gate.set_result(None)
    await asyncio.sleep(0)  # the inner task is done now, the outer one not yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
