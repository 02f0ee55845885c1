"""A member's life: its boot, what its beats mean, and its end.

It exists so that every way for a member to begin and to end is in one place: a start by the loop, a start for a claim,
a member that an earlier gateway left; and retiring, cancellation, death. Whoever cancels or fails needs only `retire`,
which never waits. It does not decide how many members there are, nor who gets one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from eg_knative.errors import EgKnativeError, LauncherError, LaunchError, LaunchTimeoutError
from eg_knative.names import new_member_name
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.roster import Roster
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Member, MemberGone, Substrate
from eg_knative.tasks import OwnedTasks
from eg_knative.wire.control import Beat, ConnectionInfo, LauncherClient
from eg_knative.wire.deadline import within
from eg_knative.wire.hold import Hold

if TYPE_CHECKING:
    from eg_knative.wire.channels import ChannelSet

logger = logging.getLogger(__name__)

CONNECTION_TIMEOUT_SECONDS = 5.0
PREPARE_TIMEOUT_SECONDS = 20.0
"""A kernel that is bound answers kernel_info within milliseconds; on a machine that is booting twenty others, within
seconds."""

RETIRE_GRACE_SECONDS = 0.5
"""Nobody's state is in a member that was never claimed."""

LAST_WORD_SECONDS = 0.2
"""That a launcher is gone and that a start fails come to be known in any order; who knows why gets so long to say it."""

_STOP_PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

Prepare = Callable[[ConnectionInfo], Awaitable["ChannelSet"]]
Clock = Callable[[], float]
_Steps = Callable[[PoolMember, float], Coroutine[Any, Any, None]]


class ClientFactory(Protocol):
    """Makes the client of one launcher."""

    def __call__(self, *, address: str, token: str) -> LauncherClient: ...


class HoldFactory(Protocol):
    """Makes the hold of one launcher."""

    def __call__(
        self, *, client: LauncherClient, interval: float, on_beat: Callable[[Beat], None], on_lost: Callable[[str], None]
    ) -> Hold: ...


class Keeper:
    """Starts, watches and ends members. `emit` gets the pool's events; `changed` is called when the loop should look again."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        roster: Roster,
        expectations: Expectations,
        tasks: OwnedTasks,
        clock: Clock,
        client_factory: ClientFactory,
        hold_factory: HoldFactory,
        prepare: Prepare | None,
        beat_interval: float,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
        on_ready: Callable[[PoolMember], None],
        on_gone: Callable[[PoolMember], None],
    ) -> None:
        self._substrates = substrates
        self._roster = roster
        self._expectations = expectations
        self._tasks = tasks
        self._clock = clock
        self._client_factory = client_factory
        self._hold_factory = hold_factory
        self._prepare = prepare
        self._beat_interval = beat_interval
        self._emit = emit
        self._changed = changed
        self._on_ready = on_ready
        self._on_gone = on_gone

    # -- beginning ------------------------------------------------------------------------------------------------

    def start(
        self, specification: KernelSpecification, *, timeout: float, for_claim: bool = False, replaces_aged: bool = False
    ) -> PoolMember:
        """Record a new member and begin its boot; it never waits. A boot for a claim is reserved from the start."""
        entry = PoolMember(
            name=new_member_name(specification.name),
            kernelspec=specification.name,
            digest=specification.digest,
            substrate=specification.substrate,
            specification=specification,
            born=self._clock(),
            for_claim=for_claim,
            reserved=for_claim,
            replaces_aged=replaces_aged,
        )
        self._roster.add(entry)
        self._expectations.expect_start(name=entry.name, group=entry.substrate)
        entry.boot = self._tasks.own(self._boot(entry, self._make, timeout), name=f"boot of {entry.name}")
        self._emit(PoolEvent(kind="started", kernelspec=entry.kernelspec, member=entry.name))
        return entry

    def resume(self, entry: PoolMember, *, timeout: float) -> None:
        """Take up the boot of a member that runs already (adoption). `entry.member` is set."""
        entry.boot = self._tasks.own(self._boot(entry, self._reach, timeout), name=f"adoption of {entry.name}")

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

    async def prepare(self, entry: PoolMember, connection: ConnectionInfo, *, timeout: float) -> None:
        """Connect the channels, replacing what was prepared before. Raises LaunchError when they are not usable in time."""
        if self._prepare is None:
            return
        if entry.channels is not None:
            entry.channels.close()
            entry.channels = None
        prepare = self._prepare

        async def fill() -> None:  # what is prepared is kept by the entry at once, so that no cancellation can lose it
            entry.channels = await prepare(connection)

        try:
            await within(timeout, fill())
        except (asyncio.TimeoutError, EgKnativeError, OSError) as error:
            raise LaunchError(
                f"The kernel {entry.kernelspec} runs, but did not answer on its channels. See its log, and whether it reads the"
                " connection file.",
                reason="channels_not_ready",
            ) from error

    async def _boot(self, entry: PoolMember, steps: _Steps, timeout: float) -> None:
        """Run the steps until the member is ready, dead or late. The outcome is in the entry; nothing is raised but
        cancellation."""
        work = asyncio.ensure_future(steps(entry, timeout))
        ended = asyncio.ensure_future(entry.ended.wait())
        try:
            await asyncio.wait({work, ended}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if entry.ended.is_set() and not work.done():
                await asyncio.wait({work}, timeout=LAST_WORD_SECONDS)
            if work.done() and not work.cancelled() and isinstance(work.exception(), LauncherError):
                await asyncio.wait({ended}, timeout=LAST_WORD_SECONDS)
                if entry.ended.is_set():
                    raise self._ended_error(entry)
            if work.done():
                work.result()
            elif entry.ended.is_set():
                raise self._ended_error(entry)
            else:
                raise LaunchTimeoutError(
                    f"The kernel {entry.kernelspec} was not ready within {timeout:g} s. Try again, or raise its"
                    " launch_timeout_seconds."
                )
        except EgKnativeError as error:
            self._boot_failed(entry, error)
        except Exception as error:
            logger.exception("The boot of %s met a defect", entry.name)
            self._boot_failed(
                entry, LaunchError(f"The start of {entry.kernelspec} met a defect of the gateway ({type(error).__name__}).")
            )
        else:
            self._boot_done(entry)
        finally:
            ended.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            self._expectations.start_observed(entry.name)

    async def _make(self, entry: PoolMember, timeout: float) -> None:
        assert entry.specification is not None
        began = self._clock()
        member = await self._substrates[entry.substrate].start(specification=entry.specification, member_name=entry.name)
        self._expectations.start_observed(entry.name)
        entry.phases["start"] = self._clock() - began
        self.connect(entry, member)
        await self._reach(entry, timeout)

    async def _reach(self, entry: PoolMember, timeout: float) -> None:
        """From a launcher that serves to a kernel that answers."""
        assert entry.hold is not None
        assert entry.client is not None
        began = self._clock()
        beat = await entry.hold.wait_beat(lambda beat: beat.state != "starting", timeout=timeout)
        entry.phases["boot"] = self._clock() - began
        if beat.state != "ready":
            raise _failure(entry, beat)
        if beat.kernel_state == "absent":  # a kernel that is started by its claim
            return
        began = self._clock()
        entry.connection = (await entry.client.connection(timeout=CONNECTION_TIMEOUT_SECONDS)).connection
        await self.prepare(entry, entry.connection, timeout=PREPARE_TIMEOUT_SECONDS)
        entry.phases["prepare"] = self._clock() - began

    def _boot_done(self, entry: PoolMember) -> None:
        if entry.state is not MemberState.BOOTING:
            return
        entry.move(MemberState.READY)
        entry.ready_at = self._clock()
        seconds = entry.ready_at - entry.born
        self._roster.pool(entry.kernelspec).history.booted(seconds)
        self._emit(
            PoolEvent(kind="ready", kernelspec=entry.kernelspec, member=entry.name, seconds=seconds, phases=dict(entry.phases))
        )
        self._on_ready(entry)
        self._changed()

    def _boot_failed(self, entry: PoolMember, error: EgKnativeError) -> None:
        if not isinstance(error, LaunchError):
            reworded = LaunchError(f"The kernel {entry.kernelspec} could not be started: {error.message}", reason=error.reason)
            reworded.__cause__ = error
            error = reworded
        entry.error = error
        if entry.state is MemberState.RETIRING:
            return
        if not entry.for_claim:
            self._roster.pool(entry.kernelspec).back_off.failed(now=self._clock(), error=error.message)
            logger.warning("The pool of %s has lost a start: %s", entry.kernelspec, error.message)
        self._emit(
            PoolEvent(
                kind="start-failed", kernelspec=entry.kernelspec, member=entry.name, reason=error.reason, message=error.message
            )
        )
        self.retire(entry, reason="failed")

    # -- what is heard --------------------------------------------------------------------------------------------

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
                self.release(entry)
            elif beat.state != "ready" or (before is not None and _another_life(before, beat)):
                self._died(entry, _failure(entry, beat).message)

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
        self.retire(entry, reason="failed", message=message)

    def _ended_error(self, entry: PoolMember) -> LaunchError:
        if entry.beat is not None and entry.beat.exit is not None:
            return _failure(entry, entry.beat)
        message = entry.gone.message if entry.gone is not None else "its launcher ended"
        return LaunchError(
            f"The kernel {entry.kernelspec} could not be started: {message}", reason=entry.gone.reason if entry.gone else None
        )

    # -- the end --------------------------------------------------------------------------------------------------

    def retire(
        self, entry: PoolMember, *, reason: str, grace_seconds: float = RETIRE_GRACE_SECONDS, message: str | None = None
    ) -> asyncio.Task[None]:
        """Begin to end a member, from any state; never waits. The task that is returned ends when its last trace is gone."""
        if entry.farewell is None:
            entry.move(MemberState.RETIRING)
            entry.retired_because = reason
            self._roster.pool(entry.kernelspec).remove_from_queue(entry)
            self._expectations.expect_stop(name=entry.name, group=entry.substrate)
            if entry.kernel is not None:
                entry.kernel.vanished(message or "it was shut down")
                self._on_gone(entry)
            self._emit(PoolEvent(kind="retired", kernelspec=entry.kernelspec, member=entry.name, reason=reason, message=message))
            entry.farewell = self._tasks.own(self._end(entry, grace_seconds), name=f"end of {entry.name}")
            self._changed()
        return entry.farewell

    def release(self, entry: PoolMember) -> None:
        """Forget a member that belongs to somebody else's claim: its parts are closed, the member itself is not touched."""
        entry.move(MemberState.RETIRING)
        entry.retired_because = "foreign"
        self._roster.pool(entry.kernelspec).remove_from_queue(entry)
        self._emit(PoolEvent(kind="released", kernelspec=entry.kernelspec, member=entry.name, reason="foreign"))
        entry.farewell = self._tasks.own(self._let_go(entry), name=f"release of {entry.name}")
        self._changed()

    async def remove(self, entry: PoolMember, grace_seconds: float) -> None:
        """End a claimed member and wait until its last trace is gone. A caller that is cancelled does not stop the end."""
        await asyncio.wait({self.retire(entry, reason="shut-down", grace_seconds=grace_seconds)})

    async def detach(self, entry: PoolMember) -> None:
        """Let go of a member that lives on for the next gateway."""
        await self._close_parts(entry)
        self._roster.remove(entry)

    async def _let_go(self, entry: PoolMember) -> None:
        await self._close_parts(entry)
        self._roster.remove(entry)

    async def _end(self, entry: PoolMember, grace_seconds: float) -> None:
        boot = entry.boot
        if boot is not None and not boot.done() and boot is not asyncio.current_task():
            if entry.error is None:  # else it is about to end by itself
                boot.cancel()
            await asyncio.wait({boot})
        await self._close_parts(entry)
        pauses = iter(_STOP_PAUSES)
        pause = _STOP_PAUSES[0]
        while True:
            try:
                await self._substrates[entry.substrate].stop(member_name=entry.name, grace_seconds=grace_seconds)
                break
            except Exception:
                logger.exception("%s could not be ended; trying again in %g s", entry.name, pause)
            await asyncio.sleep(pause)
            pause = next(pauses, pause)
        self._expectations.stop_observed(entry.name)
        self._roster.remove(entry)
        self._changed()

    async def _close_parts(self, entry: PoolMember) -> None:
        for channels in (entry.channels, entry.kernel.take_channels() if entry.kernel is not None else None):
            if channels is not None:
                channels.close()
        entry.channels = None
        if entry.hold is not None:
            await entry.hold.close()
        if entry.client is not None:
            await entry.client.close()


def _another_life(before: Beat, now: Beat) -> bool:
    """The process that was prepared is not the one that beats."""
    return (
        now.boot_id != before.boot_id
        or now.kernel_generation != before.kernel_generation
        or now.kernel_state in {"restarting", "dead"}
    )


def _failure(entry: PoolMember, beat: Beat) -> LaunchError:
    """Why a kernel does not run, in the launcher's words."""
    why = beat.exit.message if beat.exit is not None else beat.message
    return LaunchError(
        f"The kernel {entry.kernelspec} could not be started: {why or 'its launcher is ' + beat.state}",
        reason=beat.exit.reason if beat.exit is not None else None,
    )
