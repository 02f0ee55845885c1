"""Who is in the pools: memory only, the one place where members are counted.

One `KernelspecPool` per kernelspec holds its members, the queue of ready ones, and what the loop decides from: history,
back-off, the last allocation. It does no I/O and starts nothing.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping

from eg_knative.pool.events import MissReason
from eg_knative.pool.history import ClaimHistory
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import BackOff
from eg_knative.pool.quota import Bounds, bounds
from eg_knative.pool.sizing import Allocation, Demand
from eg_knative.specification import KernelSpecification


class KernelspecPool:
    """The members of one kernelspec and what is known of it. `specification` is None until the kernelspec is served."""

    def __init__(self, *, name: str, now: float) -> None:
        self.name = name
        self.specification: KernelSpecification | None = None
        self.history = ClaimHistory(since=now)
        self.back_off = BackOff()
        self.members: dict[str, PoolMember] = {}
        self.queue: collections.deque[PoolMember] = collections.deque()
        self.hits = 0
        self.misses: collections.Counter[MissReason] = collections.Counter()
        self.allocation = Allocation(wanted=0)
        self.limit_message: str | None = None
        self.hole_since: float | None = None
        """When the first ready member was claimed that nobody has been started for yet."""
        self.drained_by: MissReason | None = None
        """Why members were taken out of the queue by the pool itself, until one is ready again."""

    def serve(self, specification: KernelSpecification | None) -> None:
        """Set what new members are started from; None: the kernelspec is no longer served."""
        if specification is None or self.specification is None or specification.digest != self.specification.digest:
            self.back_off.settled()
        self.specification = specification

    def bounds(self, *, size: int) -> Bounds:
        """Floor and ceiling; both 0 when the kernelspec is not served or not pooled."""
        if self.specification is None:
            return Bounds(floor=0, ceiling=0)
        return bounds(self.specification.pool, size=size)

    def demand(self, *, size: int, now: float) -> Demand | None:
        """The question for the sizing policy; None when the kernelspec is not served."""
        if self.specification is None:
            return None
        within = self.bounds(size=size)
        return Demand(
            kernelspec=self.name,
            substrate=self.specification.substrate,
            floor=within.floor,
            ceiling=within.ceiling,
            held=len(self.held()),
            claims_per_second=self.history.rate(now),
            boot_seconds=self.history.boot_seconds,
        )

    def allocate(self, allocation: Allocation | None) -> None:
        """Set what the sizing policy gave; None: it was not asked."""
        self.allocation = allocation if allocation is not None else Allocation(wanted=0)

    def held(self) -> list[PoolMember]:
        """Ready and booting members that the allocation is about: not those that a claim has started or reserved, nor
        the extra one that is about to replace an aged member."""
        return [member for member in self.members.values() if _held(member) and not member.replaces_aged]

    def booting(self) -> list[PoolMember]:
        """Members that boot for the pool, reserved or not, oldest first."""
        return [member for member in self.members.values() if member.state is MemberState.BOOTING and not member.for_claim]

    def count(self, state: MemberState) -> int:
        """How many members are in `state`."""
        return sum(member.state is state for member in self.members.values())

    def pop(self, digest: str) -> PoolMember | None:
        """Reserve the ready member that waits longest and can be heard, and take it out of the queue; one that cannot
        be heard comes last."""
        best = None
        for member in self.queue:
            if member.claimable and member.digest == digest:
                if member.lost_at is None:
                    best = member
                    break
                best = best or member
        if best is None:
            return None
        self.queue.remove(best)
        best.reserved = True
        return best

    def put(self, member: PoolMember) -> None:
        """A member became ready: last in the queue."""
        self.queue.append(member)
        self.drained_by = None

    def put_back(self, member: PoolMember) -> None:
        """A reserved member was not claimed after all: first in the queue."""
        member.reserved = False
        self.queue.appendleft(member)

    def remove_from_queue(self, member: PoolMember) -> None:
        """Take a member out of the queue, if it is in it."""
        if member in self.queue:
            self.queue.remove(member)

    def reserve_boot(self, digest: str) -> PoolMember | None:
        """Reserve the booting member that is likely to be ready first: the oldest."""
        for member in self.booting():
            if member.digest == digest and not member.reserved and member.boot is not None:
                member.reserved = True
                return member
        return None


class Roster:
    """All pools of this process, by kernelspec name."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.pools: dict[str, KernelspecPool] = {}
        self._all_named = False

    def serve_all(self, specifications: Mapping[str, KernelSpecification]) -> None:
        """Say what is served, all of it; from then on no claim names a kernelspec."""
        self._all_named = True
        for name in {*specifications, *self.pools}:
            self.pool(name).serve(specifications.get(name))

    def serve_claimed(self, specification: KernelSpecification) -> None:
        """A claim names a kernelspec: it is served, unless somebody says what is."""
        if not self._all_named and self.pool(specification.name).specification is not specification:
            self.pool(specification.name).serve(specification)

    def named(self) -> list[KernelspecPool]:
        """The pools that can be judged: found members of a kernelspec that nobody has named yet wait."""
        return [pool for pool in self.pools.values() if self._all_named or pool.specification is not None]

    def pool(self, kernelspec: str) -> KernelspecPool:
        """The pool of that name, made when it is new."""
        if kernelspec not in self.pools:
            self.pools[kernelspec] = KernelspecPool(name=kernelspec, now=self._clock())
        return self.pools[kernelspec]

    def add(self, member: PoolMember) -> None:
        """Record a member, before anything is done for it."""
        self.pool(member.kernelspec).members[member.name] = member

    def remove(self, member: PoolMember) -> None:
        """Forget a member whose last trace is gone."""
        pool = self.pool(member.kernelspec)
        pool.members.pop(member.name, None)
        pool.remove_from_queue(member)

    def find(self, name: str) -> PoolMember | None:
        """The member of that name."""
        for pool in self.pools.values():
            if name in pool.members:
                return pool.members[name]
        return None

    def members(self) -> Iterator[PoolMember]:
        """All members in any state."""
        for pool in self.pools.values():
            yield from tuple(pool.members.values())

    def held_by_substrate(self) -> dict[str, int]:
        """Ready and booting members of the pools, the replacements of aged ones included."""
        return dict(collections.Counter(member.substrate for member in self.members() if _held(member)))


def _held(member: PoolMember) -> bool:
    """A ready member counts until its promotion is accepted, for it may come back; a boot that a claim waits for is as
    good as claimed."""
    if member.for_claim:
        return False
    return member.state is MemberState.READY or (member.state is MemberState.BOOTING and not member.reserved)
