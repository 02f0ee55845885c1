"""The limits within which a pool may keep members, and the sentence that explains each of them.

Pure functions over numbers that are in memory already. Whether a substrate can really start another member is only
known when it tries; this decides what the pool does not even ask for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from eg_knative.pool.sizing import Allocation
from eg_knative.settings import PoolSettings
from eg_knative.specification import PoolConfiguration
from eg_knative.substrates.contract import Room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How many ready and booting members may exist, in all (`total`) and on each substrate (`rooms`); `free`: how many
    may be started on each substrate now. `messages` explains substrates that are full."""

    total: int
    rooms: Mapping[str, int]
    free: Mapping[str, int]
    messages: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Wanted ready members of one kernelspec, at least and at most."""

    floor: int
    ceiling: int


def bounds(configuration: PoolConfiguration, *, size: int) -> Bounds:
    """Floor and ceiling of one kernelspec. `size` stands in for what it does not say; what it does say wins over `size`."""
    if not configuration.enabled:
        return Bounds(floor=0, ceiling=0)
    floor, ceiling = configuration.floor, configuration.ceiling
    if ceiling is None:
        ceiling = max(size, floor or 0)
    if floor is None:
        floor = min(size, ceiling)
    return Bounds(floor=min(floor, ceiling), ceiling=ceiling)


def limits(
    *, settings: PoolSettings, rooms: Mapping[str, Room], held: Mapping[str, int], on_their_way: Mapping[str, int]
) -> Limits:
    """The limits now.

    `rooms`: what each substrate says it may still start; `held`: ready and booting members per substrate;
    `on_their_way`: starts that were issued and not observed. Those may or may not be in the substrate's count yet: they
    are taken off, so that a late count delays a start and never doubles it.
    """
    free = {name: max(0, room.members - on_their_way.get(name, 0)) for name, room in rooms.items()}
    return Limits(
        total=max(0, settings.total),
        rooms={name: held.get(name, 0) + free[name] for name in rooms},
        free=free,
        messages={
            name: room.message or f"the {name} substrate has no room for another member"
            for name, room in rooms.items()
            if room.members <= 0
        },
    )


def message(allocation: Allocation, *, limits: Limits) -> str | None:
    """Why a kernelspec has fewer ready members than it would; None when nothing limits it."""
    if allocation.limited_by is None:
        return None
    if allocation.limited_by == "total":
        return (
            f"{allocation.short} more ready kernels would be useful, but all pools together may keep {limits.total}. "
            "Raise the pool's total to have more."
        )
    why = limits.messages.get(allocation.limited_by, f"starts on the {allocation.limited_by} substrate are still on their way")
    return f"{allocation.short} more ready kernels would be useful, but {why}."
