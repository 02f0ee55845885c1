"""What the pool's loop does next: which members to start, which to retire, when to look again.

One function that reads the roster and changes nothing, so that each rule can be tested by its value. The rules, in
order:

1. a member of a kernelspec that changed, or is no longer served or pooled, is retired;
2. a ready member that nobody has heard for a while is retired;
3. more members than allocated: booting ones go first, then the oldest ready ones;
4. a ready member that is too old is replaced, one at a time for each kernelspec: the new one first, or, where the
   limits leave no place for one more, the old one goes first;
5. what is missing is started, in the order of the sizing policy, within the rate, the number of boots at once and the
   substrate's room, and not while the kernelspec backs off.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Mapping

from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.quota import Limits
from eg_knative.pool.roster import KernelspecPool
from eg_knative.pool.sizing import Demand, priority
from eg_knative.specification import KernelSpecification

LOST_PATIENCE_SECONDS = 15.0
"""A ready member that is silent for longer is replaced; its hold has tried to reach it a dozen times by then."""

SETTLED_SECONDS = 30.0
"""A member that stayed ready for so long shows that its kernelspec can be started."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One member to start. `replaces_aged`: it is one more than allocated until it is ready."""

    specification: KernelSpecification
    replaces_aged: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do now. `look_again`: seconds until something may have changed by time alone."""

    retire: tuple[tuple[PoolMember, str], ...]
    start: tuple[Start, ...]
    look_again: float


def plan(
    pools: Iterable[KernelspecPool],
    *,
    demands: Mapping[str, Demand],
    limits: Limits,
    starts_allowed: int,
    now: float,
    slow: float,
    delay: float = 0.0,
) -> Plan:
    """The next actions. Every pool's `allocation` is up to date; `demands` are those of served kernelspecs.

    `starts_allowed`: how many boots rate and concurrency allow now. `slow`: the longest time to sleep, `delay`: how long a
    place is left open after a claim while other members are ready, both in seconds.
    """
    pools = list(pools)
    retire: list[tuple[PoolMember, str]] = []
    times = [slow]
    free = dict(limits.free)
    places = limits.total - sum(_occupied(pool) for pool in pools)
    queue: list[tuple[tuple[bool, float, int, str], int, KernelspecPool]] = []
    aged: list[tuple[KernelspecPool, PoolMember]] = []
    for pool in pools:
        leaving = _unfit(pool, now=now, times=times)
        staying = [member for member in pool.held() if all(member is not gone for gone, _ in leaving)]
        leaving += _surplus(pool, staying)
        retire += leaving
        places += len(leaving)
        demand = demands.get(pool.name)
        if demand is None or pool.specification is None:
            continue
        missing = pool.allocation.wanted - len(staying)
        pause = pool.back_off.wait(now)
        if pool.queue and pool.hole_since is not None:
            pause = max(pause, pool.hole_since + delay - now)
        if missing > 0 and pause > 0:
            times.append(pause)
        elif missing > 0:
            slot = len(staying) + 1
            heapq.heappush(queue, (priority(demand, slot=slot), missing, pool))
        elif pool.allocation.wanted > 0 and pause <= 0 and (old := _oldest_aged(pool, leaving, now=now, times=times)) is not None:
            aged.append((pool, old))

    start: list[Start] = []
    while queue and len(start) < starts_allowed and places > 0:
        _, missing, pool = heapq.heappop(queue)
        assert pool.specification is not None
        if free.get(pool.specification.substrate, 0) <= 0:
            continue
        start.append(Start(specification=pool.specification))
        free[pool.specification.substrate] -= 1
        places -= 1
        if missing > 1:
            slot = pool.allocation.wanted - missing + 2
            heapq.heappush(queue, (priority(demands[pool.name], slot=slot), missing - 1, pool))
    for pool, old in aged:
        assert pool.specification is not None
        if places <= 0 or free.get(pool.specification.substrate, 0) <= 0:
            retire.append((old, "aged"))
        elif len(start) < starts_allowed:
            start.append(Start(specification=pool.specification, replaces_aged=True))
            free[pool.specification.substrate] -= 1
            places -= 1
    return Plan(retire=tuple(retire), start=tuple(start), look_again=max(0.0, min(times)))


def settled(pool: KernelspecPool, *, now: float) -> bool:
    """A member that was started after the last failure has stayed ready for a while."""
    return any(
        member.state is MemberState.READY
        and member.ready_at is not None
        and member.born > pool.back_off.failed_at
        and now - member.ready_at >= SETTLED_SECONDS
        for member in pool.members.values()
    )


def oldest_aged(pool: KernelspecPool, *, now: float) -> PoolMember | None:
    """The oldest claimable ready member that has passed the kernelspec's maximum age, unless one is being replaced."""
    return _oldest_aged(pool, [], now=now, times=[])


def _occupied(pool: KernelspecPool) -> int:
    """Members that count against the total: ready and booting ones, replacements of aged ones included."""
    return len(pool.held()) + sum(
        member.replaces_aged and member.state is MemberState.BOOTING for member in pool.members.values()
    )


def _unfit(pool: KernelspecPool, *, now: float, times: list[float]) -> list[tuple[PoolMember, str]]:
    digest = pool.specification.digest if pool.specification is not None else None
    leaving: list[tuple[PoolMember, str]] = []
    for member in pool.members.values():
        if member.for_claim or member.reserved or member.state not in (MemberState.BOOTING, MemberState.READY):
            continue
        if member.digest != digest:
            leaving.append((member, "spec-changed"))
        elif member.state is MemberState.READY and member.lost_at is not None:
            left = member.lost_at + LOST_PATIENCE_SECONDS - now
            if left <= 0:
                leaving.append((member, "lost"))
            else:
                times.append(left)
    return leaving


def _surplus(pool: KernelspecPool, staying: list[PoolMember]) -> list[tuple[PoolMember, str]]:
    """Takes the surplus out of `staying`."""
    excess = len(staying) - pool.allocation.wanted
    if excess <= 0:
        return []
    booting = [member for member in staying if member.state is MemberState.BOOTING]
    ready = [member for member in staying if member.claimable]
    going = [*sorted(booting, key=lambda member: -member.born), *sorted(ready, key=lambda member: member.born)][:excess]
    staying[:] = [member for member in staying if member not in going]
    return [(member, "surplus") for member in going]


def _oldest_aged(
    pool: KernelspecPool, leaving: list[tuple[PoolMember, str]], *, now: float, times: list[float]
) -> PoolMember | None:
    if pool.specification is None or any(_is_replacing(member) for member in pool.members.values()):
        return None
    gone = {member.name for member, _ in leaving}
    ready = [member for member in pool.members.values() if member.claimable and member.name not in gone]
    if not ready:
        return None
    oldest = min(ready, key=lambda member: member.born)
    left = oldest.born + pool.specification.pool.maximum_age_seconds - now
    if left <= 0:
        return oldest
    times.append(left)
    return None


def _is_replacing(member: PoolMember) -> bool:
    """An aged member is on its way out, or its replacement on its way in."""
    if member.state is MemberState.RETIRING:
        return member.retired_because == "aged"
    return member.replaces_aged and member.state is MemberState.BOOTING
