"""The normal launch: what a claim does that found no ready member.

It *reserves the oldest booting member* of the pool and waits for it, since a start of its own could only be ready
later. When that boot fails, or takes three times what boots take, the claim starts a member of its own; so it does when
nothing boots. A start that finds the substrate full first ends a spare member there, ready or booting, for a person
goes before a spare. Whatever ends the waiting ends what was started for it; a reserved boot goes back to its pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

from eg_knative.errors import LaunchError
from eg_knative.pool.boots import Boots
from eg_knative.pool.ending import Ending
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.roster import KernelspecPool, Roster
from eg_knative.pool.serving import CLEAN_UP_SECONDS, Claim, Gate
from eg_knative.substrates.contract import Substrate

SHORTEST_PATIENCE_SECONDS = 3.0


class Launches:
    """Starts members for claims, a bounded number at once."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        roster: Roster,
        boots: Boots,
        ending: Ending,
        gate: Gate,
        expectations: Expectations,
        clock: Clock,
        concurrent_launches: int,
    ) -> None:
        self._substrates = substrates
        self._roster = roster
        self._boots = boots
        self._ending = ending
        self._gate = gate
        self._expectations = expectations
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrent_launches)

    async def wait_for_boot(self, pool: KernelspecPool, claim: Claim) -> PoolMember | None:
        """The oldest booting member of the pool once it is ready, reserved for this claim; None when there is none
        worth waiting for."""
        patience = max(SHORTEST_PATIENCE_SECONDS, 3 * pool.history.boot_seconds)
        entry = pool.reserve_boot(claim.specification.digest)
        if entry is None or entry.boot is None:
            return None
        now = self._clock()
        patience -= now - entry.born
        try:
            await asyncio.wait({entry.boot}, timeout=max(0.0, min(patience, claim.remaining(now))))
        except BaseException:
            if entry.state is MemberState.READY:
                pool.put_back(entry)
            entry.reserved = False
            raise
        if entry.state is MemberState.READY:
            return entry
        entry.reserved = False
        return None

    async def launch(self, claim: Claim) -> PoolMember:
        """Start a member for this claim alone and wait until it is ready. Raises LaunchError with everything removed."""
        await self._slot(claim)
        try:
            entry = await self._start(claim)
            assert entry.boot is not None
            try:
                await asyncio.wait({entry.boot})
            except BaseException:
                self._ending.retire(entry, reason="cancelled")
                raise
        finally:
            self._slots.release()
        if entry.state is MemberState.READY:
            return entry
        if entry.farewell is not None:
            await asyncio.wait({entry.farewell}, timeout=CLEAN_UP_SECONDS)
        raise entry.error or LaunchError(f"The start of {entry.kernelspec} was given up. Try again.", reason="stopping")

    async def _start(self, claim: Claim) -> PoolMember:
        """Begin to boot a member for the claim, in a place that is made when the substrate is full.

        The place is counted as taken from the beginning, or the pool's loop would fill it before the claim does.
        """
        specification = claim.specification
        substrate = self._substrates[specification.substrate]
        full = substrate.room().members - self._expectations.starts(substrate.name) <= 0
        place = f"claim {claim.request.claim_id}"
        self._expectations.expect_start(name=place, group=substrate.name)
        try:
            if full and (spare := self._least_missed(substrate.name)) is not None:
                await asyncio.wait({self._ending.retire(spare, reason="evicted")}, timeout=CLEAN_UP_SECONDS)
            self._gate.check()
            return self._boots.start(specification, timeout=max(0.001, claim.remaining(self._clock())), for_claim=True)
        finally:
            self._expectations.start_observed(place)

    def _least_missed(self, substrate: str) -> PoolMember | None:
        """A spare member of the kernelspec with the fewest claims; one that boots rather than one that is ready."""
        now = self._clock()
        spares = [
            (pool.history.rate(now), pool.name, entry.state is MemberState.READY, entry.name, entry)
            for pool in self._roster.pools.values()
            for entry in pool.held()
            if entry.substrate == substrate and not entry.reserved
        ]
        return min(spares)[-1] if spares else None

    async def _slot(self, claim: Claim) -> None:
        """One of the places for launches that run at once. Raises LaunchTimeoutError."""
        acquiring = asyncio.ensure_future(self._slots.acquire())
        try:
            await asyncio.wait({acquiring}, timeout=max(0.0, claim.remaining(self._clock())))
            if acquiring.done():
                return
        except BaseException:
            acquiring.cancel()
            acquiring.add_done_callback(self._give_back)
            raise
        acquiring.cancel()
        acquiring.add_done_callback(self._give_back)
        raise claim.too_late()

    def _give_back(self, acquiring: asyncio.Task[Literal[True]]) -> None:
        """A place that came too late goes to the next in line."""
        if not acquiring.cancelled():
            self._slots.release()
