"""What every substrate promises to the pool: where kernels run is its business alone.

A substrate makes members, finds the ones that it made before, and ends them. It does not speak the launcher protocol on
anybody's behalf beyond what it needs to know that a launcher serves; promoting, holding and counting are the pool's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from eg_knative.specification import KernelSpecification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One launcher that exists, and how to reach it.

    `address`: `unix:/path` or `tcp:IP:PORT` of its control port. `token`: what the launcher asks for; never shown or logged.
    `created_at`: seconds since the epoch. `where`: what a person needs to find it (pid and directory, or pod and node).
    `started_by`: "fork" or "exec" (local), "pod", …; `notice`: why a faster way was not taken.
    """

    name: str
    substrate: str
    kernelspec: str
    specification_digest: str
    address: str
    token: str = dataclasses.field(repr=False)
    created_at: float
    where: Mapping[str, str]
    started_by: str = ""
    notice: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberGone:
    """A member's launcher ended without being asked. `message` says why, as far as the substrate knows."""

    name: str
    reason: str
    message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """How many more members may be started now, from memory; `message` says what limits when it is 0."""

    members: int
    message: str | None = None


GoneListener = Callable[[MemberGone], None]


class Substrate(Protocol):
    """The contract. All methods are idempotent where that can be said at all; none blocks the event loop.

    `tests/contract` says the same in code, once for all substrates.
    """

    name: str

    async def open(self, *, gone: GoneListener) -> None:
        """Prepare and begin watching. `gone` is called on the event loop, once per member that ended unasked.

        Raises ConfigurationError (what is wrong and the remedy).
        """

    async def discover(self) -> tuple[Member, ...]:
        """The living members that an earlier gateway left, and remove what is left of dead ones. Starts watching them."""

    async def start(self, *, specification: KernelSpecification, member_name: str) -> Member:
        """Start one member; returns as soon as its launcher serves (its kernel may still boot).

        Raises LaunchError at once when the start is doomed, with everything made for it removed. Cancelling removes it too.
        """

    async def stop(self, *, member_name: str, grace_seconds: float) -> None:
        """End the member and remove every trace of it: processes, files, sockets. No error when it is gone already."""

    def room(self) -> Room:
        """Read memory only."""

    async def close(self) -> None:
        """Stop watching and release what this process holds. Members live on."""
