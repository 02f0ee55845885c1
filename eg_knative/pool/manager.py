"""The pool of one gateway process: its beginning, its end, and what others call.

`parts` puts it together; `loop` orders members, `boots` and `ending` make and end them, `hearing` judges what comes from
them, `claiming` hands them out past the loop. It does not promise that members are ready when it is open, only that they
are ordered. The pool imports neither Enterprise Gateway nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import PoolEvent, tell
from eg_knative.pool.hearing import ClientFactory, HoldFactory
from eg_knative.pool.member import MemberState
from eg_knative.pool.pacing import Clock
from eg_knative.pool.parts import PoolParts
from eg_knative.pool.preparing import Prepare
from eg_knative.pool.status import status
from eg_knative.settings import Settings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Substrate
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
        self._settings = settings.pool
        self._substrates = dict(substrates)
        self._clock = clock
        self._wake = asyncio.Event()
        self.on_event: list[Callable[[PoolEvent], None]] = []
        parts = PoolParts(
            substrates=self._substrates,
            settings=settings,
            prepare=prepare,
            client_factory=client_factory,
            hold_factory=hold_factory,
            clock=clock,
            wall=wall,
            emit=self._emit,
            wake=self._wake,
        )
        self._tasks = parts.tasks
        self._roster = parts.roster
        self._expectations = parts.expectations
        self._kernels = parts.kernels
        self.kernels: Mapping[str, ClaimedKernel] = self._kernels
        self._gate = parts.gate
        self._ending = parts.ending
        self._hearing = parts.hearing
        self._claimer = parts.claimer
        self._adopter = parts.adopter
        self._loop = parts.loop
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

    def _emit(self, event: PoolEvent) -> None:
        tell(self.on_event, event)
