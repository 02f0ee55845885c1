"""The boots of members: from an order to a member that is ready, or to its end with the reason said.

It exists so that a start by the loop, a start for a claim and a member that an earlier gateway left become ready by the
same steps, under one deadline. A boot raises nothing: its outcome is in the entry. It does not decide how many members
there are, nor who gets one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from eg_knative.errors import EgKnativeError, LauncherError, LaunchError, LaunchTimeoutError
from eg_knative.names import new_member_name
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.hearing import Hearing, ended_error, failure
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.preparing import Preparer
from eg_knative.pool.refill import oldest_aged
from eg_knative.pool.roster import Roster
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Substrate
from eg_knative.tasks import OwnedTasks

logger = logging.getLogger(__name__)

CONNECTION_TIMEOUT_SECONDS = 5.0
PREPARE_TIMEOUT_SECONDS = 20.0
"""A kernel that is bound answers kernel_info within milliseconds; on a machine that is booting twenty others, within
seconds."""

LAST_WORD_SECONDS = 0.2
"""That a launcher is gone and that a start fails come to be known in any order; who knows why gets so long to say it."""

_Steps = Callable[[PoolMember, float], Coroutine[Any, Any, None]]


class Boots:
    """Starts members. `changed` is called when the loop should look again."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        roster: Roster,
        expectations: Expectations,
        tasks: OwnedTasks,
        ending: Ending,
        hearing: Hearing,
        preparer: Preparer,
        clock: Clock,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._substrates = substrates
        self._roster = roster
        self._expectations = expectations
        self._tasks = tasks
        self._ending = ending
        self._hearing = hearing
        self._preparer = preparer
        self._clock = clock
        self._emit = emit
        self._changed = changed

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
                    raise ended_error(entry)
            if work.done():
                work.result()
            elif entry.ended.is_set():
                raise ended_error(entry)
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
        self._hearing.connect(entry, member)
        await self._reach(entry, timeout)

    async def _reach(self, entry: PoolMember, timeout: float) -> None:
        """From a launcher that serves to a kernel that answers."""
        assert entry.hold is not None
        assert entry.client is not None
        began = self._clock()
        beat = await entry.hold.wait_beat(lambda beat: beat.state != "starting", timeout=timeout)
        entry.phases["boot"] = self._clock() - began
        if beat.state != "ready":
            raise failure(entry, beat)
        if beat.kernel_state == "absent":  # a kernel that is started by its claim
            return
        began = self._clock()
        entry.connection = (await entry.client.connection(timeout=CONNECTION_TIMEOUT_SECONDS)).connection
        await self._preparer.prepare(entry, entry.connection, timeout=PREPARE_TIMEOUT_SECONDS)
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
        self._enter(entry)
        self._changed()

    def _enter(self, entry: PoolMember) -> None:
        """Put a ready member into the queue, unless a claim waits for it. What replaces an aged member does so at once."""
        pool = self._roster.pool(entry.kernelspec)
        if entry.replaces_aged:
            entry.replaces_aged = False
            if (old := oldest_aged(pool, now=self._clock())) is not None and old is not entry:
                self._ending.retire(old, reason="aged")
        if not entry.reserved:
            pool.put(entry)

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
        self._ending.retire(entry, reason="failed")
