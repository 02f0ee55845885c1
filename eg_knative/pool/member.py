"""One member of a pool, and the states that it may pass through.

It exists so that "a claimed member never goes back to the pool" is a table and not a habit: every change of state goes through
`PoolMember.move`, which refuses what the table does not list. It does no I/O and takes no decisions.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING

from eg_knative.errors import LaunchError
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Member, MemberGone
from eg_knative.wire.control import Beat, ConnectionInfo, LauncherClient
from eg_knative.wire.hold import Hold

if TYPE_CHECKING:
    from eg_knative.pool.claims import ClaimedKernel
    from eg_knative.wire.channels import ChannelSet


class MemberState(enum.Enum):
    """What the pool may do with a member."""

    BOOTING = "booting"
    READY = "ready"
    CLAIMED = "claimed"
    RETIRING = "retiring"


TRANSITIONS: Mapping[MemberState, frozenset[MemberState]] = {
    MemberState.BOOTING: frozenset({MemberState.READY, MemberState.CLAIMED, MemberState.RETIRING}),
    MemberState.READY: frozenset({MemberState.CLAIMED, MemberState.RETIRING}),
    MemberState.CLAIMED: frozenset({MemberState.RETIRING}),
    MemberState.RETIRING: frozenset(),
}
"""Allowed changes of state. Booting to claimed is adoption: an earlier gateway's claim, found again. Nothing leads back."""


class IllegalTransitionError(AssertionError):
    """A change of state that the table does not list: a defect of the pool, never of its surroundings."""


@dataclasses.dataclass(eq=False, kw_only=True)
class PoolMember:
    """What the pool knows of one member, from before its start is issued until its last trace is gone.

    `born` and `ready_at` are seconds on the pool's monotonic clock. `reserved` is True while one claim, and no other,
    is busy with the member: it waits for the boot, or the promotion is on its way. `phases` are the seconds of each
    phase of the boot. The parts that reach the launcher (`member`, `client`, `hold`, `channels`, `connection`) are
    filled in as the boot proceeds. `boot` is the task that does so, `farewell` the one that ends the member; `ended` is
    set, with `gone`, when its launcher ended by itself; `error` is why the boot failed; `kernel` is what the claimer
    got.
    """

    name: str
    kernelspec: str
    digest: str
    substrate: str
    born: float
    specification: KernelSpecification | None = None
    state: MemberState = MemberState.BOOTING
    for_claim: bool = False
    replaces_aged: bool = False
    reserved: bool = False
    ready_at: float | None = None
    lost_at: float | None = None
    retired_because: str | None = None
    phases: dict[str, float] = dataclasses.field(default_factory=dict)
    member: Member | None = None
    client: LauncherClient | None = None
    hold: Hold | None = None
    channels: ChannelSet | None = None
    connection: ConnectionInfo | None = None
    beat: Beat | None = None
    boot: asyncio.Task[None] | None = None
    farewell: asyncio.Task[None] | None = None
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    gone: MemberGone | None = None
    error: LaunchError | None = None
    kernel: ClaimedKernel | None = None

    def move(self, to: MemberState) -> None:
        """Change the state. Raises IllegalTransitionError for what the table does not allow."""
        if to not in TRANSITIONS[self.state]:
            raise IllegalTransitionError(f"{self.name} cannot go from {self.state.value} to {to.value}")
        self.state = to

    @property
    def claimable(self) -> bool:
        """Ready, and no claim is busy with it."""
        return self.state is MemberState.READY and not self.reserved

    @property
    def warm(self) -> bool:
        """A kernel process runs already, so that a promotion need not start one."""
        return self.beat is not None and self.beat.kernel_state not in {"absent", "dead"}
