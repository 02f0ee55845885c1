"""The pool of one gateway process: what it is made of, its beginning, its end, and what others call.

It decides nothing and does little: `loop` orders members, `boots` and `ending` make and end them, `hearing` judges what
comes from them, `claiming` hands them out past the loop. The pool imports neither Enterprise Gateway nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from eg_knative.pool.adoption import Adopter
from eg_knative.pool.boots import Boots
from eg_knative.pool.claiming import Claimer
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import PoolEvent, tell
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.hearing import ClientFactory, Hearing, HoldFactory
from eg_knative.pool.launching import Launches
from eg_knative.pool.loop import PoolLoop
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.preparing import Prepare, Preparer
from eg_knative.pool.promotion import Promoter
from eg_knative.pool.refill import oldest_aged
from eg_knative.pool.roster import Roster
from eg_knative.pool.serving import Gate
from eg_knative.pool.status import status
from eg_knative.settings import Settings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Substrate
from eg_knative.tasks import OwnedTasks
from eg_knative.wire.control import ClaimRequest, LauncherClient
from eg_knative.wire.hold import Hold

logger = logging.getLogger(__name__)

ADOPTION_PATIENCE_SECONDS = 5.0
"""`open` waits so long for found members to be heard; slower ones are taken over when they answer."""

CLAIMS_PATIENCE_SECONDS = 5.0
KERNEL_GRACE_SECONDS = 5.0
CLOSE_SECONDS = 20.0


class PoolManager:
    """Keeps members warm, hands them out, and looks after claimed kernels. Use it on one event loop.

    `substrates`: by name, not yet opened. `prepare`: connects the channels of a kernel before it is claimed; None:
    channels are somebody else's business. `clock`: monotonic seconds, `wall`: seconds since the epoch; both are for
    tests. `kernels`: claimed kernels by kernel id. `on_event`: callbacks for PoolEvents; add to it at any time.
    """

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        settings: Settings,
        prepare: Prepare | None = None,
        client_factory: ClientFactory = LauncherClient,
        hold_factory: HoldFactory = Hold,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        pool = settings.pool
        self._settings = pool
        self._substrates = dict(substrates)
        self._clock = clock
        self._tasks = OwnedTasks()
        self._wake = asyncio.Event()
        self._gate = Gate()
        self._roster = Roster(clock=clock)
        self._expectations = Expectations(timeout_seconds=pool.expectation_timeout_seconds, clock=clock)
        self._kernels: dict[str, ClaimedKernel] = {}
        self.kernels: Mapping[str, ClaimedKernel] = self._kernels
        self.on_event: list[Callable[[PoolEvent], None]] = []
        preparer = Preparer(prepare=prepare)
        self._ending = Ending(
            substrates=self._substrates,
            roster=self._roster,
            expectations=self._expectations,
            tasks=self._tasks,
            emit=self._emit,
            changed=self._wake.set,
            on_gone=self._gone,
        )
        self._hearing = Hearing(
            roster=self._roster,
            expectations=self._expectations,
            ending=self._ending,
            clock=clock,
            client_factory=client_factory,
            hold_factory=hold_factory,
            beat_interval=settings.beat_interval_seconds,
            emit=self._emit,
            changed=self._wake.set,
        )
        boots = Boots(
            substrates=self._substrates,
            roster=self._roster,
            expectations=self._expectations,
            tasks=self._tasks,
            ending=self._ending,
            hearing=self._hearing,
            preparer=preparer,
            clock=clock,
            emit=self._emit,
            changed=self._wake.set,
            on_ready=self._ready,
        )
        self._claimer = Claimer(
            substrates=self._substrates,
            kernels=self._kernels,
            roster=self._roster,
            launches=Launches(
                substrates=self._substrates,
                roster=self._roster,
                expectations=self._expectations,
                boots=boots,
                ending=self._ending,
                gate=self._gate,
                clock=clock,
                concurrent_launches=pool.concurrent_launches,
            ),
            promoter=Promoter(ending=self._ending, preparer=preparer, gate=self._gate, clock=clock),
            ending=self._ending,
            gate=self._gate,
            clock=clock,
            size=pool.size,
            emit=self._emit,
            changed=self._wake.set,
        )
        self._adopter = Adopter(
            roster=self._roster,
            boots=boots,
            hearing=self._hearing,
            ending=self._ending,
            preparer=preparer,
            kernels=self._kernels,
            clock=clock,
            wall=wall,
            boot_timeout=pool.boot_timeout_seconds,
            emit=self._emit,
        )
        self._loop = PoolLoop(
            substrates=self._substrates,
            settings=pool,
            roster=self._roster,
            expectations=self._expectations,
            boots=boots,
            ending=self._ending,
            clock=clock,
            wake=self._wake,
        )
        self._looping: asyncio.Task[None] | None = None
        self._opened: list[Substrate] = []

    # -- beginning and end ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the substrates, take over what an earlier gateway left, begin to refill. Once.

        Raises ConfigurationError of a substrate, with the others closed again.
        """
        try:
            for substrate in self._substrates.values():
                await substrate.open(gone=self._hearing.gone)
                self._opened.append(substrate)
            found = [self._adopter.enter(member) for substrate in self._opened for member in await substrate.discover()]
        except BaseException:
            await self.close(shut_down_kernels=False)
            raise
        adoptions = [self._tasks.own(self._adopter.adopt(entry), name=f"adoption of {entry.name}") for entry in found]
        if adoptions:
            await asyncio.wait(adoptions, timeout=ADOPTION_PATIENCE_SECONDS)
        self._gate.closed = False
        self._looping = self._tasks.own(self._loop.run(), name="pool loop")

    async def close(self, *, shut_down_kernels: bool) -> None:
        """Stop. False: members live on for the next gateway; True: all are ended, claimed ones too. Bounded in time,
        and idempotent.

        Claims under way are given a moment; then they fail with LaunchError and what they made is ended.
        """
        self._gate.closed = True
        if self._looping is not None:
            self._looping.cancel()
        for entry in self._roster.members():
            if entry.state is MemberState.BOOTING and (entry.for_claim or entry.member is None):
                self._ending.retire(entry, reason="closed")
        drained = asyncio.ensure_future(self._claimer.drained.wait())
        await asyncio.wait({drained}, timeout=CLAIMS_PATIENCE_SECONDS)
        drained.cancel()
        for entry in self._roster.members():
            claimed = entry.state is MemberState.CLAIMED
            unheard = entry.state is MemberState.BOOTING and entry.boot is None  # found, and not known to be nobody's
            if shut_down_kernels or (entry.reserved and not claimed and not unheard):
                grace = KERNEL_GRACE_SECONDS if claimed else 0.0
                self._ending.retire(entry, reason="closed", grace_seconds=grace, message="the gateway was stopped")
        ends = [entry.farewell for entry in self._roster.members() if entry.farewell is not None]
        if ends:
            _, late = await asyncio.wait(ends, timeout=CLOSE_SECONDS)
            for task in late:
                logger.error(
                    "%s is not over; what is left of it is recorded and cleared away by the next gateway", task.get_name()
                )
        await self._tasks.close(timeout=0.0)
        for entry in self._roster.members():
            await self._ending.detach(entry)
        self._kernels.clear()
        opened, self._opened = self._opened, []
        for substrate in opened:
            await substrate.close()

    # -- what others call -----------------------------------------------------------------------------------------

    def set_specifications(self, specifications: Mapping[str, KernelSpecification]) -> None:
        """All kernelspecs that are served, by name. A process that never says so (stock Enterprise Gateway) has each
        named by its claims. New ones are warmed; ready members of changed and removed ones are retired."""
        self._roster.serve_all(specifications)
        self._wake.set()

    async def claim(self, request: ClaimRequest, *, specification: KernelSpecification, timeout: float) -> ClaimedKernel:
        """A kernel with the identity that is asked for: a ready member when there is one, else a normal launch.

        `timeout`: seconds for everything. Raises DuplicateKernelError and BadRequestError (with the field), LaunchError
        (the reason and what to do) and its LaunchTimeoutError. Whatever is raised, cancellation included, nothing that
        was made for the claim lives on.
        """
        self._roster.serve_claimed(specification)
        return await self._claimer.claim(request, specification=specification, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """JSON-able; see eg_knative.pool.status."""
        return status(
            roster=self._roster,
            substrates=self._substrates,
            expectations=self._expectations,
            limits=self._loop.limits,
            size=self._settings.size,
            now=self._clock(),
            draining=self._gate.closed,
            error=self._loop.error,
        )

    def _ready(self, entry: PoolMember) -> None:
        """A member became ready: into the queue, unless a claim waits for it. What replaces an aged member does so at once."""
        pool = self._roster.pool(entry.kernelspec)
        if entry.replaces_aged:
            entry.replaces_aged = False
            if (old := oldest_aged(pool, now=self._clock())) is not None and old is not entry:
                self._ending.retire(old, reason="aged")
        if not entry.reserved:
            pool.put(entry)

    def _gone(self, entry: PoolMember) -> None:
        if entry.kernel is not None and self._kernels.get(entry.kernel.kernel_id) is entry.kernel:
            del self._kernels[entry.kernel.kernel_id]

    def _emit(self, event: PoolEvent) -> None:
        tell(self.on_event, event)
