"""The pool of one gateway process: what it is made of, its one loop, its beginning and its end.

Events (a member ready, claimed or gone, a changed kernelspec) wake the loop; a slow clock does when nothing happens,
for limits change silently. The loop only compares and orders: it never waits for a start or a stop. Claims go past it.
The deciding is in `sizing`, `quota` and `refill`, the doing in `keeper` and `claiming`. The pool imports neither
Enterprise Gateway nor Kubernetes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from eg_knative.pool.adoption import Adopter
from eg_knative.pool.claiming import Claimer
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import PoolEvent, tell
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.keeper import ClientFactory, Clock, HoldFactory, Keeper, Prepare
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import TokenBucket
from eg_knative.pool.quota import Limits, limits, message
from eg_knative.pool.refill import oldest_aged, plan, settled
from eg_knative.pool.roster import Roster
from eg_knative.pool.sizing import allocate
from eg_knative.pool.status import status
from eg_knative.settings import Settings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Substrate
from eg_knative.tasks import OwnedTasks
from eg_knative.wire.control import ClaimRequest, LauncherClient
from eg_knative.wire.hold import Hold

logger = logging.getLogger(__name__)

SLOW_CLOCK_SECONDS = 5.0
SHORTEST_PAUSE_SECONDS = 0.01
"""Between two looks when only time has passed: rounding must not make the loop turn on the spot."""

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
        self._roster = Roster(clock=clock)
        self._expectations = Expectations(timeout_seconds=pool.expectation_timeout_seconds, clock=clock)
        self._bucket = TokenBucket(rate=pool.refill_per_second, burst=pool.refill_per_second, clock=clock)
        self._kernels: dict[str, ClaimedKernel] = {}
        self.kernels: Mapping[str, ClaimedKernel] = self._kernels
        self.on_event: list[Callable[[PoolEvent], None]] = []
        self._keeper = Keeper(
            substrates=self._substrates,
            roster=self._roster,
            expectations=self._expectations,
            tasks=self._tasks,
            clock=clock,
            client_factory=client_factory,
            hold_factory=hold_factory,
            prepare=prepare,
            beat_interval=settings.beat_interval_seconds,
            emit=self._emit,
            changed=self._wake.set,
            on_ready=self._ready,
            on_gone=self._gone,
        )
        self._claimer = Claimer(
            substrates=self._substrates,
            roster=self._roster,
            keeper=self._keeper,
            expectations=self._expectations,
            kernels=self._kernels,
            clock=clock,
            concurrent_launches=pool.concurrent_launches,
            size=pool.size,
            emit=self._emit,
            changed=self._wake.set,
            prepares=prepare is not None,
        )
        self._adopter = Adopter(
            roster=self._roster,
            keeper=self._keeper,
            kernels=self._kernels,
            clock=clock,
            wall=wall,
            boot_timeout=pool.boot_timeout_seconds,
            emit=self._emit,
        )
        self._all_named = False
        self._limits: Limits | None = None
        self._loop: asyncio.Task[None] | None = None
        self._loop_error: str | None = None
        self._opened: list[Substrate] = []

    # -- beginning and end ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the substrates, take over what an earlier gateway left, begin to refill. Once.

        Raises ConfigurationError of a substrate, with the others closed again.
        """
        try:
            for substrate in self._substrates.values():
                await substrate.open(gone=self._keeper.gone)
                self._opened.append(substrate)
            found = [self._adopter.enter(member) for substrate in self._opened for member in await substrate.discover()]
        except BaseException:
            await self.close(shut_down_kernels=False)
            raise
        adoptions = [self._tasks.own(self._adopter.adopt(entry), name=f"adoption of {entry.name}") for entry in found]
        if adoptions:
            await asyncio.wait(adoptions, timeout=ADOPTION_PATIENCE_SECONDS)
        self._claimer.closed = False
        self._loop = self._tasks.own(self._run(), name="pool loop")

    async def close(self, *, shut_down_kernels: bool) -> None:
        """Stop. False: members live on for the next gateway; True: all are ended, claimed ones too. Bounded in time,
        and idempotent.

        Claims under way are given a moment; then they fail with LaunchError and what they made is ended.
        """
        self._claimer.closed = True
        if self._loop is not None:
            self._loop.cancel()
        for entry in self._roster.members():
            if entry.state is MemberState.BOOTING and (entry.for_claim or entry.member is None):
                self._keeper.retire(entry, reason="closed")
        drained = asyncio.ensure_future(self._claimer.drained.wait())
        await asyncio.wait({drained}, timeout=CLAIMS_PATIENCE_SECONDS)
        drained.cancel()
        for entry in self._roster.members():
            claimed = entry.state is MemberState.CLAIMED
            unheard = entry.state is MemberState.BOOTING and entry.boot is None  # found, and not known to be nobody's
            if shut_down_kernels or (entry.reserved and not claimed and not unheard):
                grace = KERNEL_GRACE_SECONDS if claimed else 0.0
                self._keeper.retire(entry, reason="closed", grace_seconds=grace, message="the gateway was stopped")
        ends = [entry.farewell for entry in self._roster.members() if entry.farewell is not None]
        if ends:
            _, late = await asyncio.wait(ends, timeout=CLOSE_SECONDS)
            for task in late:
                logger.error(
                    "%s is not over; what is left of it is recorded and cleared away by the next gateway", task.get_name()
                )
        await self._tasks.close(timeout=0.0)
        for entry in self._roster.members():
            await self._keeper.detach(entry)
        self._kernels.clear()
        opened, self._opened = self._opened, []
        for substrate in opened:
            await substrate.close()

    # -- what others call -----------------------------------------------------------------------------------------

    def set_specifications(self, specifications: Mapping[str, KernelSpecification]) -> None:
        """All kernelspecs that are served, by name. A process that never says so (stock Enterprise Gateway) has each
        named by its claims. New ones are warmed; ready members of changed and removed ones are retired."""
        self._all_named = True
        for name in {*specifications, *self._roster.pools}:
            self._roster.pool(name).serve(specifications.get(name))
        self._wake.set()

    async def claim(self, request: ClaimRequest, *, specification: KernelSpecification, timeout: float) -> ClaimedKernel:
        """A kernel with the identity that is asked for: a ready member when there is one, else a normal launch.

        `timeout`: seconds for everything. Raises DuplicateKernelError and BadRequestError (with the field), LaunchError
        (the reason and what to do) and its LaunchTimeoutError. Whatever is raised, cancellation included, nothing that
        was made for the claim lives on.
        """
        if not self._all_named and self._roster.pool(specification.name).specification is not specification:
            self._roster.pool(specification.name).serve(specification)
        return await self._claimer.claim(request, specification=specification, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """JSON-able; see eg_knative.pool.status."""
        return status(
            roster=self._roster,
            substrates=self._substrates,
            expectations=self._expectations,
            limits=self._limits,
            size=self._settings.size,
            now=self._clock(),
            draining=self._claimer.closed,
            error=self._loop_error,
        )

    # -- the loop -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                pause = self._step()
                self._loop_error = None
            except Exception as error:
                logger.exception("The pool's loop met a defect; claims go on, and it tries again")
                self._loop_error = f"The pool's loop met a defect ({type(error).__name__}); see the log."
                pause = SLOW_CLOCK_SECONDS
            waiting = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({waiting}, timeout=max(pause, SHORTEST_PAUSE_SECONDS))
            finally:
                waiting.cancel()

    def _step(self) -> float:
        """Compare and order, once. Returns the seconds until time alone may ask for more."""
        now = self._clock()
        # Found members of a kernelspec that nobody has named yet cannot be judged: they wait.
        pools = [pool for pool in self._roster.pools.values() if self._all_named or pool.specification is not None]
        demands = {pool.name: demand for pool in pools if (demand := pool.demand(size=self._settings.size, now=now)) is not None}
        self._limits = limits(
            settings=self._settings,
            rooms={name: substrate.room() for name, substrate in self._substrates.items()},
            held=self._roster.held_by_substrate(),
            on_their_way={name: self._expectations.starts(name) for name in self._substrates},
        )
        allocations = allocate(list(demands.values()), total=self._limits.total, rooms=self._limits.rooms)
        for pool in pools:
            pool.allocate(allocations.get(pool.name))
            pool.limit_message = message(pool.allocation, limits=self._limits)
            if len(pool.held()) >= pool.allocation.wanted:
                pool.hole_since = None
            if pool.back_off.failures and settled(pool, now=now):
                pool.back_off.settled()
        booting = sum(len(pool.booting()) for pool in pools)
        slots = max(0, self._settings.concurrent_starts - booting)
        tokens = self._bucket.available()
        orders = plan(
            pools,
            demands=demands,
            limits=self._limits,
            starts_allowed=min(slots, tokens),
            now=now,
            slow=SLOW_CLOCK_SECONDS,
            delay=self._settings.refill_delay_seconds,
        )
        for entry, reason in orders.retire:
            self._retire(entry, reason)
        for start in orders.start:
            self._bucket.take()
            self._roster.pool(start.specification.name).hole_since = None
            self._keeper.start(
                start.specification, timeout=self._settings.boot_timeout_seconds, replaces_aged=start.replaces_aged
            )
        return min(orders.look_again, self._bucket.wait() if tokens < slots else SLOW_CLOCK_SECONDS)

    def _retire(self, entry: PoolMember, reason: str) -> None:
        pool = self._roster.pool(entry.kernelspec)
        if entry.state is MemberState.READY and pool.specification is not None:
            if reason == "aged":
                pool.drained_by = "age"
            elif reason == "spec-changed":
                pool.drained_by = "spec-changed"
        self._keeper.retire(entry, reason=reason)

    def _ready(self, entry: PoolMember) -> None:
        """A member became ready: into the queue, unless a claim waits for it. What replaces an aged member does so at once."""
        pool = self._roster.pool(entry.kernelspec)
        if entry.replaces_aged:
            entry.replaces_aged = False
            if (old := oldest_aged(pool, now=self._clock())) is not None and old is not entry:
                self._keeper.retire(old, reason="aged")
        if not entry.reserved:
            pool.put(entry)

    def _gone(self, entry: PoolMember) -> None:
        if entry.kernel is not None and self._kernels.get(entry.kernel.kernel_id) is entry.kernel:
            del self._kernels[entry.kernel.kernel_id]

    def _emit(self, event: PoolEvent) -> None:
        tell(self.on_event, event)
