"""A claimed kernel as the gateway sees it: what it is, how it was launched, how it is, and what can be asked of it.

It exists so that a process proxy needs one object and no knowledge of members, launchers or substrates. What is read
here comes from memory (the latest beat); nothing polls. It does not restart a kernel by itself: the launcher does, as
the kernelspec says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from eg_knative.errors import EgKnativeError, LauncherUnreachableError
from eg_knative.pool.events import KernelEvent, MissReason, tell
from eg_knative.pool.member import PoolMember
from eg_knative.substrates.contract import Member
from eg_knative.wire.control import Beat, ClaimRecord, ConnectionInfo, LauncherClient, Usage

if TYPE_CHECKING:
    from eg_knative.wire.channels import ChannelSet

KernelListener = Callable[[KernelEvent], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchReport:
    """How a kernel came to its user.

    `hit`: it was ready before it was asked for; else `miss_reason` says why not. `started`: `running` (that process
    took the identity) or `fresh`. `notice`: why a faster way was not taken. `phases`: seconds of each step the user
    waited for, `launcher.*` as the launcher measured them; `boot_phases`: seconds of the member's own boot (before the
    claim, when it was a hit). `at`: seconds since the epoch. `adopted`: found, not launched.
    """

    hit: bool
    miss_reason: MissReason | None
    started: str
    notice: str | None
    phases: Mapping[str, float]
    boot_phases: Mapping[str, float]
    at: float
    adopted: bool = False


class ClaimedKernel:
    """One kernel that belongs to a user. `launch` is how it got there; `shutdown` ends it and its member."""

    def __init__(
        self,
        *,
        entry: PoolMember,
        member: Member,
        client: LauncherClient,
        claim: ClaimRecord,
        connection: ConnectionInfo,
        boot_id: str,
        kernel_generation: int,
        launch: LaunchReport,
        remove: Callable[[PoolMember, float], Awaitable[None]],
    ) -> None:
        self.kernel_id = claim.kernel_id
        self.claim = claim
        self.member = member
        self.connection = connection
        self.boot_id = boot_id
        self.kernel_generation = kernel_generation
        self.launch = launch
        self.channels: ChannelSet | None = None
        self._entry = entry
        self._client = client
        self._remove = remove
        self._listeners: list[KernelListener] = []
        self._restarting = False
        self._last_exit = entry.beat.exit if entry.beat is not None else None
        self._gone: str | None = None

    def __repr__(self) -> str:
        return f"ClaimedKernel({self.kernel_id!r}, member={self.member.name!r})"

    @property
    def latest_beat(self) -> Beat | None:
        """The last beat heard, however old."""
        return self._entry.beat

    @property
    def alive(self) -> bool:
        """The kernel runs or is being restarted, as far as was last heard. A lost hold is no death."""
        if self._gone is not None:
            return False
        beat = self._entry.beat
        return beat is None or (beat.state not in {"failed", "stopping"} and beat.kernel_state != "dead")

    def take_channels(self) -> ChannelSet | None:
        """Hand the prepared channels over, once; None when there are none (any more). The taker closes them."""
        channels, self.channels = self.channels, None
        return channels

    def add_listener(self, listener: KernelListener) -> Callable[[], None]:
        """Call `listener` on the event loop for every event from now on; what is returned takes it off again."""
        self._listeners.append(listener)

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return remove

    async def restart(self, timeout: float) -> ConnectionInfo:
        """Restart the kernel in place and wait until it is bound, at most `timeout` seconds. Ports and key stay.

        Raises LauncherError and its kin; the launcher and its member live on in any case.
        """
        self._begin_restart()
        try:
            restarted = await self._live_client().restart(timeout=timeout)
        except BaseException as error:
            if self._restarting:
                self._restarting = False
                why = error.message if isinstance(error, EgKnativeError) else "the restart was given up"
                self._tell("died", message=f"It could not be restarted: {why}")
            raise
        self.connection = restarted.connection
        self._end_restart(restarted.kernel_generation)
        return self.connection

    async def interrupt(self) -> None:
        """Interrupt the running cell, in the way that the kernelspec names. Raises LauncherError and its kin."""
        await self._live_client().interrupt()

    async def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group. Raises LauncherError and its kin."""
        await self._live_client().signal(signum)

    async def usage(self) -> Usage:
        """What the kernel's process tree uses now. Raises LauncherError and its kin."""
        return await self._live_client().usage()

    async def shutdown(self, grace_seconds: float) -> None:
        """End the kernel and its member: asked first, killed after `grace_seconds`. Returns when every trace is gone;
        repeated calls are one call."""
        await self._remove(self._entry, grace_seconds)

    def heard(self, beat: Beat, *, before: Beat | None) -> None:
        """The pool's part: a beat came."""
        if beat.exit is not None and beat.exit != self._last_exit:
            self._last_exit = beat.exit
            self._tell("died", message=beat.exit.message, exit=beat.exit)
            if beat.exit.restarted:
                self._begin_restart()
        elif beat.state == "failed" and (before is None or before.state != "failed"):
            self._tell("died", message=beat.message or "The kernel could not be kept running.")
        if beat.kernel_state == "restarting":
            self._begin_restart()
        elif beat.kernel_generation > self.kernel_generation and beat.kernel_state in {"idle", "busy"}:
            self._end_restart(beat.kernel_generation)
        self._tell("beat", beat=beat)

    def lost(self, message: str) -> None:
        """The pool's part: no beats any more."""
        self._tell("lost", message=message)

    def found(self) -> None:
        """The pool's part: beats again."""
        self._tell("found")

    def vanished(self, message: str) -> None:
        """The pool's part: the launcher is gone, or is being ended. Told once."""
        if self._gone is None:
            self._gone = message
            self._tell("gone", message=message)
            if self.channels is not None:
                self.channels.close()
                self.channels = None

    def _live_client(self) -> LauncherClient:
        if self._gone is not None:
            raise LauncherUnreachableError(f"The kernel {self.kernel_id} is gone: {self._gone}")
        return self._client

    def _begin_restart(self) -> None:
        if not self._restarting:
            self._restarting = True
            self._tell("restarting")

    def _end_restart(self, generation: int) -> None:
        """Once per generation, whoever brings the news first: the answer to a restart or a beat."""
        if generation > self.kernel_generation:
            self.kernel_generation = generation
            self._restarting = False
            self._tell("restarted", connection=self.connection)

    def _tell(self, kind: str, **details: object) -> None:
        tell(self._listeners, KernelEvent(kind=kind, **details))  # type: ignore[arg-type]
