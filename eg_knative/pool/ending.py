"""The end of a member's life, from any state.

It exists so that whoever cancels, fails or shuts down needs one call, `retire`, which never waits: the end itself is a
task that the pool owns, and goes on whatever becomes of its caller. It does not decide who ends nor why, and does not
promise when a member is gone: a substrate that fails to end it is asked again until it does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping

from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.roster import Roster
from eg_knative.substrates.contract import Substrate
from eg_knative.tasks import OwnedTasks

logger = logging.getLogger(__name__)

RETIRE_GRACE_SECONDS = 0.5
"""Nobody's state is in a member that was never claimed."""

_STOP_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Ending:
    """Ends members, and takes their kernels out of `kernels`, the table of claimed kernels by kernel id. `changed` is called
    when the loop should look again."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        roster: Roster,
        kernels: MutableMapping[str, ClaimedKernel],
        expectations: Expectations,
        tasks: OwnedTasks,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._substrates = substrates
        self._roster = roster
        self._kernels = kernels
        self._expectations = expectations
        self._tasks = tasks
        self._emit = emit
        self._changed = changed

    def retire(
        self, entry: PoolMember, *, reason: str, grace_seconds: float = RETIRE_GRACE_SECONDS, message: str | None = None
    ) -> asyncio.Task[None]:
        """Begin to end a member, from any state; never waits. The task that is returned ends when its last trace is gone."""
        if entry.farewell is None:
            entry.move(MemberState.RETIRING)
            entry.retired_because = reason
            self._roster.pool(entry.kernelspec).remove_from_queue(entry)
            self._expectations.expect_stop(name=entry.name, group=entry.substrate)
            if entry.kernel is not None:
                entry.kernel.vanished(message or "it was shut down")
                if self._kernels.get(entry.kernel.kernel_id) is entry.kernel:
                    del self._kernels[entry.kernel.kernel_id]
            self._emit(PoolEvent(kind="retired", kernelspec=entry.kernelspec, member=entry.name, reason=reason, message=message))
            entry.farewell = self._tasks.own(self._end(entry, grace_seconds), name=f"end of {entry.name}")
            self._changed()
        return entry.farewell

    def release(self, entry: PoolMember) -> None:
        """Forget a member that belongs to somebody else's claim: its parts are closed, the member itself is not touched."""
        entry.move(MemberState.RETIRING)
        entry.retired_because = "foreign"
        self._roster.pool(entry.kernelspec).remove_from_queue(entry)
        self._emit(PoolEvent(kind="released", kernelspec=entry.kernelspec, member=entry.name, reason="foreign"))
        entry.farewell = self._tasks.own(self.detach(entry), name=f"release of {entry.name}")
        self._changed()

    async def remove(self, entry: PoolMember, grace_seconds: float) -> None:
        """End a claimed member and wait until its last trace is gone. A caller that is cancelled does not stop the end."""
        await asyncio.wait({self.retire(entry, reason="shut-down", grace_seconds=grace_seconds)})

    async def detach(self, entry: PoolMember) -> None:
        """Let go of a member that lives on for the next gateway."""
        await self._close_parts(entry)
        self._roster.remove(entry)

    async def _end(self, entry: PoolMember, grace_seconds: float) -> None:
        boot = entry.boot
        if boot is not None and not boot.done() and boot is not asyncio.current_task():
            if entry.error is None:  # else it is about to end by itself
                boot.cancel()
            await asyncio.wait({boot})
        await self._close_parts(entry)
        pauses = iter(_STOP_PAUSES)
        pause = _STOP_PAUSES[0]
        while True:
            try:
                await self._substrates[entry.substrate].stop(member_name=entry.name, grace_seconds=grace_seconds)
                break
            except Exception:
                logger.exception("%s could not be ended; trying again in %g s", entry.name, pause)
            await asyncio.sleep(pause)
            pause = next(pauses, pause)
        self._expectations.stop_observed(entry.name)
        self._roster.remove(entry)
        self._changed()

    async def _close_parts(self, entry: PoolMember) -> None:
        for channels in (entry.channels, entry.kernel.take_channels() if entry.kernel is not None else None):
            if channels is not None:
                channels.close()
        entry.channels = None
        if entry.hold is not None:
            await entry.hold.close()
        if entry.client is not None:
            await entry.client.close()
