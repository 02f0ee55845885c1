"""One sweep of the process table for all who ask meanwhile.

Looking for what is left of a session means reading all of /proc, some 10 ms of Python in a thread that shares the
interpreter lock with the event loop. When many kernels end at once, one look serves them all: forty sweeps side by
side held the loop up for 190 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from eg_knative.substrates.local_processes import ProcessIdentity, end_sessions
from eg_knative.tasks import OwnedTasks

log = logging.getLogger(__name__)


class SessionSweeper:
    """Ends sessions; at most one sweep runs, and one is being collected."""

    def __init__(self, *, tasks: OwnedTasks) -> None:
        self._tasks = tasks
        self._wanted: list[ProcessIdentity] = []
        self._next: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def end(self, leaders: Iterable[ProcessIdentity]) -> None:
        """End what still runs in the sessions of these processes; see `end_sessions`. What cannot be killed is logged."""
        self._wanted.extend(leaders)
        if self._next is None:
            self._next = self._tasks.own(self._sweep(), name="sweep of sessions")
        await asyncio.shield(self._next)

    async def _sweep(self) -> None:
        async with self._one_at_a_time:
            wanted, self._wanted, self._next = self._wanted, [], None
            if wanted and (left := await asyncio.to_thread(end_sessions, wanted)):
                log.error("%d processes that kernels left behind cannot be killed", left)
