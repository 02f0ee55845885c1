"""Pool tests run in virtual time, and end with nothing left: no task, no open channel, no running launcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.unit.pool.pool_fakes import World


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/unit/pool" in item.path.as_posix():
            item.add_marker(pytest.mark.looptime)


@pytest.fixture
async def make_world() -> AsyncIterator[Callable[..., World]]:
    """Worlds whose managers are closed at the end, everything stopped, and that are then looked over."""
    worlds: list[World] = []

    def make(**options: object) -> World:
        worlds.append(World(**options))  # type: ignore[arg-type]
        return worlds[-1]

    yield make
    for world in worlds:
        await world.manager.close(shut_down_kernels=True)
        assert world.substrate.running == 0
        assert world.substrate.closed or not world.substrate.opened
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not [task.get_name() for task in left if "pool" in task.get_name() or " of " in task.get_name()]
