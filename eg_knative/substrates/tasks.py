"""Background tasks with an owner: none is lost, an unexpected death is logged, all are awaited at the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from eg_knative.errors import EgKnativeError

log = logging.getLogger(__name__)
T = TypeVar("T")


class OwnedTasks:
    """The running tasks of one owner. An EgKnativeError is an answer to whoever awaits the task, not a death."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def own(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` to its end, whatever becomes of the caller."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Wait until nothing runs any more; tasks must end by themselves or have been cancelled."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, EgKnativeError):
            log.error("The %s failed", task.get_name(), exc_info=error)
