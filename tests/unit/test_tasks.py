"""A background task is never lost: its death is told, its end is awaited, and the wait is bounded."""

from __future__ import annotations

import asyncio

import pytest

from eg_knative.errors import LaunchError
from eg_knative.tasks import OwnedTasks


async def dying(error: Exception) -> None:
    raise error


async def test_an_unexpected_death_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tasks = OwnedTasks()
    tasks.own(dying(RuntimeError("why it died")), name="task under test")
    await tasks.close()
    assert "The background task 'task under test' died" in caplog.text
    assert "why it died" in caplog.text


@pytest.mark.parametrize(("awaited", "told"), [(False, True), (True, False)])
async def test_an_answer_is_told_unless_somebody_awaits_it(caplog: pytest.LogCaptureFixture, awaited: bool, told: bool) -> None:
    tasks = OwnedTasks()
    task = tasks.own(dying(LaunchError("no kernel today")), name="launch", awaited=awaited)
    await tasks.close()
    assert ("no kernel today" in caplog.text) is told
    assert "Traceback" not in caplog.text
    assert isinstance(task.exception(), LaunchError)


async def test_closing_cancels_what_does_not_end_in_time() -> None:
    tasks = OwnedTasks()
    task = tasks.own(asyncio.sleep(60), name="sleeper")
    await tasks.close(timeout=0.01)
    assert task.cancelled()
    assert len(tasks) == 0


async def test_closing_waits_for_what_is_started_meanwhile() -> None:
    tasks = OwnedTasks()
    ended = []

    async def second() -> None:
        await asyncio.sleep(0.01)
        ended.append("second")

    async def first() -> None:
        tasks.own(second(), name="second")
        ended.append("first")

    tasks.own(first(), name="first")
    await tasks.close()
    assert ended == ["first", "second"]
