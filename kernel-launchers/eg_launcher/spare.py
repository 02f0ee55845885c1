"""One spare kernel: forked and initialised ahead, bound to nothing, so that a restart in place takes milliseconds.

Made in the background once a member is claimed. It is only ever an advantage: a spare that fails is a notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from eg_launcher.errors import KernelStartError
from eg_launcher.identity import Identity
from eg_launcher.kernel import KernelProcess, KernelStarter

_WAIT_SECONDS = 5.0
# Making one takes about 100 ms of a core. Right after a claim or a restart a first cell wants it: with two cores that cell
# took 14 ms instead of 5 (measured).
_DELAY_SECONDS = 0.5


class Spare:
    """Owns at most one spare kernel and the task that makes it."""

    def __init__(self, *, starter: KernelStarter, timeout_seconds: float, on_failure: Callable[[str], None]) -> None:
        self._starter = starter
        self._timeout_seconds = timeout_seconds
        self._on_failure = on_failure
        self._making: asyncio.Task[KernelProcess | None] | None = None
        self._wanted = asyncio.Event()

    def prepare(self, identity: Identity) -> None:
        """Make one soon, unless there is one."""
        if self._making is None:
            self._wanted.clear()
            self._making = asyncio.create_task(self._make(identity), name="spare kernel")

    async def take(self) -> KernelProcess | None:
        """The spare, if there is one alive; waits a little for one that is being made."""
        making, self._making = self._making, None
        if making is None:
            return None
        self._wanted.set()
        try:
            spare = await asyncio.wait_for(making, _WAIT_SECONDS)
        except asyncio.TimeoutError:
            return None
        if spare is not None and not spare.alive:
            spare.release()
            return None
        return spare

    async def discard(self) -> None:
        """Kill the spare, or stop making it."""
        making, self._making = self._making, None
        if making is None:
            return
        making.cancel()
        (spare,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(spare, KernelProcess):
            with contextlib.suppress(asyncio.TimeoutError):
                await spare.kill()

    async def _make(self, identity: Identity) -> KernelProcess | None:
        deadline = time.monotonic() + self._timeout_seconds
        try:
            if not self._starter.is_ipykernel:
                return None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), _DELAY_SECONDS)
            kernel, _ = await self._starter.start(identity=identity, bind=False, final=True, deadline=deadline)
        except KernelStartError as error:
            self._on_failure(f"No spare kernel: {error}")
            return None
        return kernel
