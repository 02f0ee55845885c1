"""Background tasks with an owner: none is lost, each unexpected death is told, all are awaited at the end.

asyncio keeps only a weak reference to a task and speaks of its exception when it is collected, if ever. It restarts nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from eg_knative.errors import EgKnativeError

_T = TypeVar("_T")


class OwnedTasks:
    """The running tasks of one owner; nothing of a finished one is kept. `log`: where deaths are told."""

    def __init__(self, *, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger(__name__)
        self._tasks: set[asyncio.Task[Any]] = set()

    def own(self, work: Coroutine[Any, Any, _T], *, name: str, awaited: bool = False) -> asyncio.Task[_T]:
        """Run `work` to its end, whatever becomes of the caller; the event loop may not have been started yet.

        `awaited`: somebody awaits the task, so an EgKnativeError that leaves it is an answer and is not logged.
        """
        task = asyncio.get_event_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, awaited=awaited))
        return task

    async def close(self, *, timeout: float | None = None) -> None:
        """Wait until nothing runs, for at most `timeout` seconds (None: the tasks end by themselves); then cancel what is left
        and wait for its end. What is started meanwhile is waited for as well."""
        own = asyncio.current_task()
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        while pending := {task for task in self._tasks if task is not own}:
            left = None if deadline is None else deadline - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                for task in pending:
                    task.cancel()
                left = None
            await asyncio.wait(pending, timeout=left)

    def __len__(self) -> int:
        return len(self._tasks)

    def _ended(self, task: asyncio.Task[Any], *, awaited: bool) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, EgKnativeError):
            self._log.error("The background task '%s' died", task.get_name(), exc_info=error)
        elif not awaited:
            self._log.warning("%s: %s", task.get_name(), error.message)
