"""Background tasks with an owner.

jupyter_client calls some methods of a process proxy synchronously (send_signal, kill, cleanup); what they start must neither
block nor be forgotten: it is kept here, its failure is logged, and whoever ends the process waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from eg_knative.errors import EgKnativeError


class OwnedTasks:
    """A set of running tasks. Nothing of a finished task is kept."""

    def __init__(self, *, log: logging.Logger) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run `work` on the event loop, which may not have been started yet."""
        task = asyncio.get_event_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, EgKnativeError):
            self._log.warning("%s: %s", task.get_name(), error.message)
        elif error is not None:
            self._log.error("%s ended with an unexpected error", task.get_name(), exc_info=error)

    async def drain(self, *, timeout: float) -> None:
        """Wait for what runs, at most `timeout` seconds; cancel what is left then."""
        current = asyncio.current_task()
        pending = {task for task in self._tasks if task is not current}
        if not pending:
            return
        _, late = await asyncio.wait(pending, timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)
