"""The life of one local member: made step by step, found again, ended, cleared away.

It is made in this order: directory, record, process, record with the process, control socket that answers. It is
cleared away in the reverse, and each step may find that the one before never happened. Which members exist, and who
is told of their end, is `local`'s.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from eg_knative.errors import EgKnativeError, LaunchError, LauncherUnreachableError, LaunchTimeoutError
from eg_knative.specification import KernelSpecification
from eg_knative.substrates import local_log
from eg_knative.substrates.contract import Member
from eg_knative.substrates.local_directory import RunDirectory
from eg_knative.substrates.local_launchers import CONFIGURATION_FILE, LOG_FILE, LauncherStarter, Started
from eg_knative.substrates.local_processes import ProcessIdentity, ProcessWatch, identify, listener_of, reap
from eg_knative.substrates.local_records import MemberRecord, read_sessions, write_record
from eg_knative.substrates.local_sweep import SessionSweeper
from eg_knative.tasks import OwnedTasks
from eg_knative.wire.control import Health, LauncherClient

log = logging.getLogger(__name__)

SERVE_TIMEOUT_SECONDS = 20.0
"""From the launcher's process to its first answer: 0.2 s by exec and 20 ms by fork on an idle machine."""
ADOPT_TIMEOUT_SECONDS = 10.0
_MARGIN_SECONDS = 1.0
_KILL_SECONDS = 5.0


class LocalMember:
    """One member. `cleared` is called once, when nothing of it is left."""

    def __init__(
        self,
        *,
        record: MemberRecord,
        token: str,
        run_directory: RunDirectory,
        tasks: OwnedTasks,
        sweeper: SessionSweeper,
        cleared: Callable[[LocalMember], None],
    ) -> None:
        self.record = record
        self.watch: ProcessWatch | None = None
        self.starting: asyncio.Task[None] | None = None
        self.ending = False
        """Somebody asked for the end, or it has come: there is nothing more to tell."""
        self._token = token
        self._run_directory = run_directory
        self._directory = run_directory.members / record.name
        self._client = LauncherClient(address=record.address, token=token)
        self._tasks = tasks
        self._sweeper = sweeper
        self._cleared = cleared
        self._clearing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The member's name."""
        return self.record.name

    @property
    def log_path(self) -> Path:
        """Where its launcher's output goes."""
        return self._directory / LOG_FILE

    def as_member(self) -> Member:
        """The contract's view of it."""
        return self.record.as_member(directory=self._directory, token=self._token)

    async def start(self, *, specification: KernelSpecification, starter: LauncherStarter) -> None:
        """Make it; returns when its launcher serves. Raises LaunchError; then, and when cancelled, it is cleared away."""
        try:
            self._run_directory.make_member(self.name)
            write_record(self._directory, self.record)
            started = await starter.start(
                specification=specification,
                name=self.name,
                address=self.record.address,
                token=self._token,
                directory=self._directory,
            )
            self._know(started)
            await self._serves(timeout=SERVE_TIMEOUT_SECONDS)
            (self._directory / CONFIGURATION_FILE).unlink(missing_ok=True)
        except OSError as error:
            await self.clear()
            raise LaunchError(
                f"Member {self.name} could not be started: {error.strerror or error}. Look at {self._run_directory.path}.",
                reason="launcher_failed",
            ) from error
        except BaseException:
            await self.clear()
            raise

    async def undo(self) -> None:
        """End a start that is under way, or that came to its end just now."""
        if self.starting is not None and not self.starting.done():
            self.starting.cancel()
            await asyncio.wait({self.starting})
        await self.clear()

    async def adopt(self) -> bool:
        """Find the member that the record tells of; False when there is none (any more) and its remains are cleared away."""
        launcher = self.record.launcher or self._unrecorded()
        self.watch = None if launcher is None else ProcessWatch.open(launcher)
        if self.watch is None or self.record.launcher is None:
            # Without a whole record its start was never answered: nobody can have claimed it.
            await self.clear()
            return False
        try:
            health = await self._serves(timeout=ADOPT_TIMEOUT_SECONDS)
        except LaunchError as error:
            log.warning("Member %s is not adopted but ended: %s", self.name, error.message)
            await self.clear()
            return False
        if health.state == "stopping":
            await self.end(grace_seconds=_KILL_SECONDS)
            return False
        return True

    async def end(self, *, grace_seconds: float) -> None:
        """Ask, then insist, then clear away. Several calls may run at once; the shortest grace wins."""
        self.ending = True
        if self.watch is not None:
            try:
                await self._client.shutdown(grace_seconds=grace_seconds, timeout=min(2.0, grace_seconds + 0.5))
            except EgKnativeError:
                self.watch.send(signal.SIGTERM)
            if not await self.watch.wait(timeout=grace_seconds + _MARGIN_SECONDS):
                log.warning("The launcher of %s did not end within %g s and is killed", self.name, grace_seconds)
        await self.clear()

    async def clear(self) -> None:
        """Remove every trace: processes, socket, files. Once, however many ask, and to the end even if they are cancelled."""
        self.ending = True
        if self._clearing is None:
            self._clearing = self._tasks.own(self._clear(), name=f"clearing of {self.name}", awaited=True)
        await asyncio.shield(self._clearing)

    def last_output(self) -> str:
        """The launcher's last lines as an appendix to a sentence, or nothing."""
        text = local_log.tail(self.log_path)
        return f" Its last output:\n{text}" if text else ""

    def _know(self, started: Started) -> None:
        identity = identify(started.pid)
        self.watch = None if identity is None else ProcessWatch.open(identity)
        if self.watch is None:
            raise self._failed("The launcher ended at once", reap(started.pid))
        self.record = dataclasses.replace(
            self.record, launcher=identity, address=started.address, started_by=started.started_by, notice=started.notice
        )
        write_record(self._directory, self.record)
        self._client = LauncherClient(address=started.address, token=self._token)

    async def _serves(self, *, timeout: float) -> Health:
        """Wait for the first answer. Raises LaunchError as soon as there can be none."""
        assert self.watch is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = 0.004
        while True:
            try:
                health = await self._client.health(timeout=max(0.1, deadline - loop.time()))
            except LauncherUnreachableError as error:
                if loop.time() >= deadline:
                    raise LaunchTimeoutError(
                        f"The launcher of {self.name} did not answer within {timeout:g} s.{self.last_output()}"
                    ) from error
            except EgKnativeError as error:
                raise LaunchError(
                    f"The launcher of {self.name} cannot be used: {error.message}", reason="launcher_failed"
                ) from error
            else:
                if health.name != self.name:
                    raise LaunchError(f"Another launcher answers in the place of {self.name}.", reason="launcher_failed")
                return health
            if await self.watch.wait(timeout=pause):
                raise self._failed("The launcher ended before it served", self.watch.exit_code)
            pause = min(1.5 * pause, 0.05)

    def _failed(self, what: str, code: int | None) -> LaunchError:
        how = f" with code {code}" if code is not None and code >= 0 else ""
        return LaunchError(f"{what}{how}.{self.last_output()}", reason="launcher_failed")

    def _unrecorded(self) -> ProcessIdentity | None:
        """A launcher whose gateway was killed between starting it and writing down which process it is."""
        pid = listener_of(self.record.address.removeprefix("unix:"))
        return None if pid is None else identify(pid)

    async def _clear(self) -> None:
        if self.watch is not None:
            self.watch.send(signal.SIGKILL)
            if not await self.watch.wait(timeout=_KILL_SECONDS):
                log.error("The launcher of %s (process %d) cannot be killed", self.name, self.watch.identity.pid)
            self.watch.close()
        try:
            await self._sweeper.end(self._sessions())
            await asyncio.to_thread(self._run_directory.remove_member, self.name, address=self.record.address)
        except OSError as error:
            log.error("The files of %s cannot be removed: %s", self.name, error)
        finally:
            self._cleared(self)

    def _sessions(self) -> list[ProcessIdentity]:
        launcher = self.record.launcher
        if launcher is None:
            return []
        return [launcher, *read_sessions(self._directory, machine_boot=launcher.machine_boot)]
