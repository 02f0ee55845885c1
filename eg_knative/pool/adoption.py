"""Members that an earlier gateway left: claimed ones become kernels again, ready ones go back to their queues.

The launcher is the one who knows: its first beat says whether the member is claimed, its claim record whose it is. A
member that does not answer is waited for as long as its substrate says that it lives, and never ended on suspicion: it
may hold somebody's work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from eg_knative.errors import EgKnativeError, LaunchError
from eg_knative.pool.boots import CONNECTION_TIMEOUT_SECONDS, Boots
from eg_knative.pool.claims import ClaimedKernel, LaunchReport
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.hearing import Hearing
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.preparing import Preparer
from eg_knative.pool.roster import Roster
from eg_knative.substrates.contract import Member
from eg_knative.wire.control import Beat, ClaimRecord

logger = logging.getLogger(__name__)

PREPARE_SECONDS = 3.0
"""A kernel in the middle of a long cell does not answer kernel_info; its channels are then the gateway's business."""

_HEARING_SECONDS = 60.0


class Adopter:
    """Takes over members that a substrate has discovered. `kernels` is the table of claimed kernels, which it fills."""

    def __init__(
        self,
        *,
        roster: Roster,
        boots: Boots,
        hearing: Hearing,
        ending: Ending,
        preparer: Preparer,
        kernels: dict[str, ClaimedKernel],
        clock: Clock,
        wall: Clock,
        boot_timeout: float,
        emit: Callable[[PoolEvent], None],
    ) -> None:
        self._roster = roster
        self._boots = boots
        self._hearing = hearing
        self._ending = ending
        self._preparer = preparer
        self._kernels = kernels
        self._clock = clock
        self._wall = wall
        self._boot_timeout = boot_timeout
        self._emit = emit

    def enter(self, member: Member) -> PoolMember:
        """Put a discovered member on the roster, reserved until it is known what it is, and begin to listen to it."""
        entry = PoolMember(
            name=member.name,
            kernelspec=member.kernelspec,
            digest=member.specification_digest,
            substrate=member.substrate,
            born=self._clock() - max(0.0, self._wall() - member.created_at),
            reserved=True,
        )
        self._roster.add(entry)
        self._hearing.connect(entry, member)
        return entry

    async def adopt(self, entry: PoolMember) -> None:
        """Find out what a member is, and make it that. Ends when it is known; raises nothing but cancellation."""
        beat = await self._first_beat(entry)
        if beat is None:
            return
        if beat.state != "claimed":
            entry.reserved = False
            self._boots.resume(entry, timeout=self._boot_timeout)
            if entry.boot is not None and beat.state == "ready":  # its channels are prepared within milliseconds
                await asyncio.wait({entry.boot})
            return
        try:
            await self._adopt_kernel(entry)
        except EgKnativeError as error:
            logger.warning("The kernel of %s could not be taken over: %s", entry.name, error.message)
            if entry.state is MemberState.BOOTING:
                self._ending.release(entry)

    async def _first_beat(self, entry: PoolMember) -> Beat | None:
        """None: the member ended before it was heard."""
        assert entry.hold is not None
        while entry.state is MemberState.BOOTING and not entry.ended.is_set():
            try:
                return await entry.hold.wait_beat(lambda beat: True, timeout=_HEARING_SECONDS)
            except EgKnativeError:  # noqa: PERF203 - once a minute
                logger.warning("%s lives, its substrate says, and does not answer yet", entry.name)
        if entry.state is MemberState.BOOTING:
            self._ending.retire(entry, reason="failed", message=entry.gone.message if entry.gone else None)
        return None

    async def _adopt_kernel(self, entry: PoolMember) -> None:
        assert entry.client is not None
        assert entry.member is not None
        answer = await entry.client.connection(timeout=CONNECTION_TIMEOUT_SECONDS)
        claim = answer.claim
        if claim is None or claim.kernel_id in self._kernels:
            raise LaunchError("its claim record is missing, or names a kernel that exists already")
        if entry.state is not MemberState.BOOTING:
            return
        entry.move(MemberState.CLAIMED)
        entry.connection = answer.connection
        entry.kernel = kernel = ClaimedKernel(
            entry=entry,
            member=entry.member,
            client=entry.client,
            claim=claim,
            connection=answer.connection,
            boot_id=answer.boot_id,
            kernel_generation=answer.kernel_generation,
            launch=_report(claim),
            remove=self._ending.remove,
        )
        self._kernels[claim.kernel_id] = kernel
        self._emit(PoolEvent(kind="adopted", kernelspec=entry.kernelspec, member=entry.name))
        try:
            await self._preparer.prepare(entry, answer.connection, timeout=PREPARE_SECONDS)
        except LaunchError:
            logger.info("The channels of %s are not prepared: its kernel is busy or does not answer", entry.name)
        if entry.farewell is None:
            kernel.channels, entry.channels = entry.channels, None


def _report(claim: ClaimRecord) -> LaunchReport:
    return LaunchReport(
        hit=False,
        miss_reason=None,
        started="running",
        notice="It was running already when this gateway started.",
        phases={},
        boot_phases={},
        at=claim.claimed_at,
        adopted=True,
    )
