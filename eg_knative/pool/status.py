"""The pool's state as plain data for a person or a page: one function that reads memory.

Names of kernelspecs and members, counts, seconds and sentences; no key, token or environment value gets here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eg_knative.pool.events import MISS_REASONS
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.quota import Limits
from eg_knative.pool.roster import KernelspecPool, Roster
from eg_knative.substrates.contract import Substrate


def status(
    *,
    roster: Roster,
    substrates: Mapping[str, Substrate],
    expectations: Expectations,
    limits: Limits | None,
    size: int,
    now: float,
    draining: bool,
    error: str | None,
) -> dict[str, Any]:
    """JSON-able. Ages and times in seconds."""
    pools = {name: _pool(pool, size=size, now=now) for name, pool in sorted(roster.pools.items())}
    return {
        "pools": pools,
        "totals": {
            key: sum(pool[key] for pool in pools.values())
            for key in ("ready", "booting", "claimed", "retiring", "wanted", "hits")
        }
        | {"misses": sum(sum(pool["misses"].values()) for pool in pools.values())},
        "limits": {
            "total": limits.total if limits is not None else None,
            "substrates": {
                name: {
                    "room": substrate.room().members,
                    "message": substrate.room().message,
                    "starts_on_their_way": expectations.starts(name),
                    "stops_on_their_way": expectations.stops(name),
                }
                for name, substrate in substrates.items()
            },
        },
        "draining": draining,
        "error": error,
    }


def _pool(pool: KernelspecPool, *, size: int, now: float) -> dict[str, Any]:
    within = pool.bounds(size=size)
    return {
        **{state.value: pool.count(state) for state in MemberState},
        "wanted": pool.allocation.wanted,
        "floor": within.floor,
        "ceiling": within.ceiling,
        "served": pool.specification is not None,
        "digest": pool.specification.digest if pool.specification is not None else None,
        "hits": pool.hits,
        "misses": {reason: pool.misses[reason] for reason in MISS_REASONS},
        "claims_per_second": pool.history.rate(now),
        "boot_seconds": pool.history.boot_seconds,
        "limited": pool.limit_message,
        "last_error": pool.back_off.error,
        "failed_starts": pool.back_off.failures,
        "next_try_in_seconds": pool.back_off.wait(now),
        "members": [_member(member, now=now) for member in pool.members.values()],
    }


def _member(member: PoolMember, *, now: float) -> dict[str, Any]:
    beat = member.beat
    return {
        "name": member.name,
        "state": member.state.value,
        "age_seconds": now - member.born,
        "reserved": member.reserved,
        "where": dict(member.member.where) if member.member is not None else {},
        "started_by": member.member.started_by if member.member is not None else None,
        "boot_phases": dict(member.phases),
        "resident_bytes": beat.resident_bytes if beat is not None else None,
        "heard": member.lost_at is None and beat is not None,
        "kernel_id": member.kernel.kernel_id if member.kernel is not None else None,
        "retired_because": member.retired_because,
    }
