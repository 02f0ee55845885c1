"""The pool's one loop: compare what is with what is wanted, and order what is missing.

Events (a member ready, claimed or gone, a changed kernelspec) wake it; a slow clock does when nothing happens, for limits
change silently. It exists apart from the pool's beginning and end because it only compares and orders: it never waits
for a start or a stop, and does not promise that an order succeeds. The deciding is in `sizing`, `quota` and `refill`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from eg_knative.pool.boots import Boots
from eg_knative.pool.ending import Ending
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock, TokenBucket
from eg_knative.pool.quota import Limits, limits, message
from eg_knative.pool.refill import plan, settled
from eg_knative.pool.roster import Roster
from eg_knative.pool.sizing import allocate
from eg_knative.settings import PoolSettings
from eg_knative.substrates.contract import Substrate

logger = logging.getLogger(__name__)

SLOW_CLOCK_SECONDS = 5.0
SHORTEST_PAUSE_SECONDS = 0.01
"""Between two looks when only time has passed: rounding must not make the loop turn on the spot."""


class PoolLoop:
    """Refills and empties the pools. `wake`: set it when there is something to look at. `limits`: those of the last look,
    None before the first; `error`: what is wrong with the loop itself, for people."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        settings: PoolSettings,
        roster: Roster,
        expectations: Expectations,
        boots: Boots,
        ending: Ending,
        clock: Clock,
        wake: asyncio.Event,
    ) -> None:
        self._substrates = substrates
        self._settings = settings
        self._roster = roster
        self._expectations = expectations
        self._boots = boots
        self._ending = ending
        self._clock = clock
        self._wake = wake
        self._bucket = TokenBucket(rate=settings.refill_per_second, burst=settings.refill_per_second, clock=clock)
        self.limits: Limits | None = None
        self.error: str | None = None

    async def run(self) -> None:
        """Until cancelled. A step that fails is logged, said in `error`, and tried again."""
        while True:
            self._wake.clear()
            try:
                pause = self._step()
                self.error = None
            except Exception as error:
                logger.exception("The pool's loop met a defect; claims go on, and it tries again")
                self.error = f"The pool's loop met a defect ({type(error).__name__}); see the log."
                pause = SLOW_CLOCK_SECONDS
            waiting = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait({waiting}, timeout=max(pause, SHORTEST_PAUSE_SECONDS))
            finally:
                waiting.cancel()

    def _step(self) -> float:
        """Compare and order, once. Returns the seconds until time alone may ask for more."""
        now = self._clock()
        pools = self._roster.named()
        demands = {pool.name: demand for pool in pools if (demand := pool.demand(size=self._settings.size, now=now)) is not None}
        self.limits = limits(
            settings=self._settings,
            rooms={name: substrate.room() for name, substrate in self._substrates.items()},
            held=self._roster.held_by_substrate(),
            on_their_way={name: self._expectations.starts(name) for name in self._substrates},
        )
        allocations = allocate(list(demands.values()), total=self.limits.total, rooms=self.limits.rooms)
        for pool in pools:
            pool.allocate(allocations.get(pool.name))
            pool.limit_message = message(pool.allocation, limits=self.limits)
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
            limits=self.limits,
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
            self._boots.start(start.specification, timeout=self._settings.boot_timeout_seconds, replaces_aged=start.replaces_aged)
        return min(orders.look_again, self._bucket.wait() if tokens < slots else SLOW_CLOCK_SECONDS)

    def _retire(self, entry: PoolMember, reason: str) -> None:
        pool = self._roster.pool(entry.kernelspec)
        if entry.state is MemberState.READY and pool.specification is not None:
            if reason == "aged":
                pool.drained_by = "age"
            elif reason == "spec-changed":
                pool.drained_by = "spec-changed"
        self._ending.retire(entry, reason=reason)
