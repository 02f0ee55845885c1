"""What is heard of a member, and what it means: beats, silence, and the substrate's word that it ended.

It exists so that every judgement on a member that runs (it lives, is lost, died, or is somebody else's) is in one place;
`failure` and `ended_error` put the reason in words for a boot too. It asks nothing: what nobody tells is not known, and
silence alone ends nobody here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from eg_knative.errors import LaunchError
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.roster import Roster
from eg_knative.substrates.contract import Member, MemberGone
from eg_knative.wire.control import Beat, LauncherClient
from eg_knative.wire.hold import Hold


class ClientFactory(Protocol):
    """Makes the client of one launcher."""

    def __call__(self, *, address: str, token: str) -> LauncherClient: ...


class HoldFactory(Protocol):
    """Makes the hold of one launcher."""

    def __call__(
        self, *, client: LauncherClient, interval: float, on_beat: Callable[[Beat], None], on_lost: Callable[[str], None]
    ) -> Hold: ...


class Hearing:
    """Opens the holds of members and judges what comes. `changed` is called when the loop should look again."""

    def __init__(
        self,
        *,
        roster: Roster,
        expectations: Expectations,
        ending: Ending,
        clock: Clock,
        client_factory: ClientFactory,
        hold_factory: HoldFactory,
        beat_interval: float,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._roster = roster
        self._expectations = expectations
        self._ending = ending
        self._clock = clock
        self._client_factory = client_factory
        self._hold_factory = hold_factory
        self._beat_interval = beat_interval
        self._emit = emit
        self._changed = changed

    def connect(self, entry: PoolMember, member: Member) -> None:
        """Open the client and the hold of a member that serves."""
        entry.member = member
        entry.client = self._client_factory(address=member.address, token=member.token)
        entry.hold = self._hold_factory(
            client=entry.client,
            interval=self._beat_interval,
            on_beat=lambda beat: self._heard(entry, beat),
            on_lost=lambda message: self._lost(entry, message),
        )
        entry.hold.start()

    def gone(self, event: MemberGone) -> None:
        """A substrate says that a member ended unasked."""
        entry = self._roster.find(event.name)
        if entry is None or self._expectations.stop_expected(event.name):
            return
        entry.gone = event
        entry.ended.set()
        if entry.state is not MemberState.BOOTING:  # else the boot sees it
            self._died(entry, event.message)

    def _heard(self, entry: PoolMember, beat: Beat) -> None:
        before, kernel = entry.beat, entry.kernel
        was_lost = entry.lost_at is not None
        entry.beat, entry.lost_at = beat, None
        if kernel is not None and entry.state is MemberState.CLAIMED:
            if beat.boot_id != kernel.boot_id:
                self._died(entry, "its launcher was started anew, and what it had in memory is lost")
                return
            if was_lost:
                kernel.found()
            kernel.heard(beat, before=before)
        elif entry.state is MemberState.READY and not entry.reserved:
            if beat.state == "claimed":
                self._ending.release(entry)
            elif beat.state != "ready" or (before is not None and _another_life(before, beat)):
                self._died(entry, failure(entry, beat).message)

    def _lost(self, entry: PoolMember, message: str) -> None:
        if entry.lost_at is None:
            entry.lost_at = self._clock()
        if entry.kernel is not None and entry.state is MemberState.CLAIMED:
            entry.kernel.lost(message)
        self._changed()

    def _died(self, entry: PoolMember, message: str) -> None:
        if entry.state is MemberState.RETIRING:
            return
        if entry.state is MemberState.READY:
            self._roster.pool(entry.kernelspec).back_off.failed(now=self._clock(), error=message)
        self._emit(PoolEvent(kind="died", kernelspec=entry.kernelspec, member=entry.name, message=message))
        self._ending.retire(entry, reason="failed", message=message)


def failure(entry: PoolMember, beat: Beat) -> LaunchError:
    """Why a kernel does not run, in the launcher's words."""
    why = beat.exit.message if beat.exit is not None else beat.message
    return LaunchError(
        f"The kernel {entry.kernelspec} could not be started: {why or 'its launcher is ' + beat.state}",
        reason=beat.exit.reason if beat.exit is not None else None,
    )


def ended_error(entry: PoolMember) -> LaunchError:
    """Why a member ended while it booted: in its launcher's last words, or else in its substrate's."""
    if entry.beat is not None and entry.beat.exit is not None:
        return failure(entry, entry.beat)
    message = entry.gone.message if entry.gone is not None else "its launcher ended"
    return LaunchError(
        f"The kernel {entry.kernelspec} could not be started: {message}", reason=entry.gone.reason if entry.gone else None
    )


def _another_life(before: Beat, now: Beat) -> bool:
    """The process that was prepared is not the one that beats."""
    return (
        now.boot_id != before.boot_id
        or now.kernel_generation != before.kernel_generation
        or now.kernel_state in {"restarting", "dead"}
    )
