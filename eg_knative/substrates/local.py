"""The `local` substrate: members are launcher processes of this machine, recorded in a private run directory.

It exists so that everything runs without a cluster, by the same contract (`contract.py`). A member is made in this
order: directory, record, process, record with the process, control socket that answers. It is unmade in the
reverse, and each step may find that the one before never happened. It does not isolate kernels from each other:
they run as the gateway's own user.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import signal
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from eg_knative.errors import ConfigurationError, EgKnativeError, LaunchError, LauncherUnreachableError, LaunchTimeoutError
from eg_knative.names import member_token
from eg_knative.settings import LocalSettings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates import local_log, local_room
from eg_knative.substrates.contract import GoneListener, Member, MemberGone, Room
from eg_knative.substrates.local_directory import RunDirectory
from eg_knative.substrates.local_environment import is_forbidden
from eg_knative.substrates.local_launchers import CONFIGURATION_FILE, LOG_FILE, LauncherStarter
from eg_knative.substrates.local_nursery import Nursery, words
from eg_knative.substrates.local_processes import ProcessIdentity, ProcessWatch, end_sessions, identify
from eg_knative.substrates.local_records import MemberRecord, read_record, write_record
from eg_knative.wire.control import Health, LauncherClient

log = logging.getLogger(__name__)

SERVE_TIMEOUT_SECONDS = 20.0
"""From the launcher's process to its first answer; about 0.3 s by exec on an idle machine, 30 ms by fork."""
ADOPT_TIMEOUT_SECONDS = 10.0
_MARGIN_SECONDS = 1.0
_KILL_SECONDS = 5.0
_TRIM_SECONDS = 5.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclasses.dataclass
class _Entry:
    """One member of this process's knowledge."""

    record: MemberRecord
    client: LauncherClient
    watch: ProcessWatch | None = None
    starting: asyncio.Task[Member] | None = None
    ending: bool = False
    removal: asyncio.Task[None] | None = None


class LocalSubstrate:
    """See `contract.Substrate`. `environment`: the gateway's own; None: this process's."""

    name = "local"

    def __init__(self, *, settings: LocalSettings, environment: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._directory = RunDirectory(settings.run_directory)
        self._nursery = Nursery(log_path=self._directory.nursery_log)
        self._starter = LauncherStarter(
            settings=settings, nursery=self._nursery, environment=dict(os.environ if environment is None else environment)
        )
        self._secret: bytes | None = None
        self._gone: GoneListener = _nobody_listens
        self._members: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._trimming: asyncio.Task[None] | None = None

    async def open(self, *, gone: GoneListener) -> None:
        if not hasattr(os, "pidfd_open"):
            raise ConfigurationError("The local substrate needs Linux 5.3 or newer (pidfd_open).", field="substrate")
        for name in filter(is_forbidden, self._settings.inherited_environment):
            log.warning(
                "Variable %s is never inherited by kernels: its name says that it holds a secret or is the gateway's own", name
            )
        self._secret = self._directory.open()
        self._gone = gone
        self._trimming = self._own(self._trim_logs(), name="trimming of launchers' logs")

    async def discover(self) -> tuple[Member, ...]:
        self._opened()
        names = [path.name for path in await asyncio.to_thread(_directories, self._directory.members)]
        found = await asyncio.gather(*(self._adopt(name) for name in names if name not in self._members))
        known = {entry.record.address for entry in self._members.values()}
        await asyncio.to_thread(self._directory.remove_sockets_except, known)
        return tuple(member for member in found if member is not None)

    async def start(self, *, specification: KernelSpecification, member_name: str) -> Member:
        token = self._token(member_name)
        if not _NAME.fullmatch(member_name) or member_name in self._members:
            raise LaunchError(f"{member_name!r} is not a free member name.", reason="launch_failed")
        if len(self._members) >= self._settings.maximum_processes:
            raise LaunchError(
                f"{len(self._members)} kernels run, and maximum_processes is {self._settings.maximum_processes}."
                " Shut kernels down, or raise the limit.",
                reason="quota",
            )
        record = MemberRecord(
            name=member_name,
            kernelspec=specification.name,
            specification_digest=specification.digest,
            address=self._directory.new_address(),
            created_at=time.time(),
        )
        entry = _Entry(record=record, client=LauncherClient(address=record.address, token=token))
        self._members[member_name] = entry
        entry.starting = self._own(self._start(entry, specification, token), name=f"start of {member_name}")
        try:
            await asyncio.wait({entry.starting})
        except asyncio.CancelledError:
            # Owned by the substrate: it goes on to the end even if we are cancelled again.
            await asyncio.shield(self._own(self._undo(entry), name=f"undoing of {member_name}"))
            raise
        if entry.starting.cancelled():
            raise LaunchError(f"Member {member_name} was stopped while it was started.", reason="stopped")
        return entry.starting.result()

    async def stop(self, *, member_name: str, grace_seconds: float) -> None:
        entry = self._members.get(member_name)
        if entry is None:
            return
        under_way = entry.watch is None or (entry.starting is not None and not entry.starting.done())
        work = self._undo(entry) if under_way else self._end(entry, grace_seconds=max(0.0, grace_seconds))
        await asyncio.shield(self._own(work, name=f"end of {member_name}"))

    def room(self) -> Room:
        return local_room.room(
            running=len(self._members),
            maximum=self._settings.maximum_processes,
            available_bytes=local_room.available_bytes(),
            minimum_free_bytes=self._settings.minimum_free_memory_bytes,
        )

    async def close(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
        for entry in list(self._members.values()):
            if entry.starting is not None and not entry.starting.done():
                await self._undo(entry)
        while self._tasks:
            await asyncio.wait(self._tasks)
        for entry in self._members.values():
            if entry.watch is not None:
                entry.watch.close()
        self._members.clear()
        self._secret = None
        await self._nursery.close()
        self._directory.close()

    # Starting

    async def _start(self, entry: _Entry, specification: KernelSpecification, token: str) -> Member:
        name = entry.record.name
        try:
            directory = self._directory.make_member(name)
            write_record(directory, entry.record)
            started = await self._starter.start(
                specification=specification, name=name, address=entry.record.address, token=token, directory=directory
            )
            identity = identify(started.pid)
            entry.watch = None if identity is None else ProcessWatch.open(identity)
            if entry.watch is None:
                raise self._failed(entry, "The launcher ended at once")
            entry.record = dataclasses.replace(
                entry.record, launcher=identity, started_by=started.started_by, notice=started.notice
            )
            write_record(directory, entry.record)
            await self._serves(entry, timeout=SERVE_TIMEOUT_SECONDS)
            (directory / CONFIGURATION_FILE).unlink(missing_ok=True)
        except OSError as error:
            await self._remove(entry)
            raise LaunchError(
                f"Member {name} could not be started: {error.strerror or error}. Look at {self._directory.path}.",
                reason="launcher_failed",
            ) from error
        except BaseException:
            await self._remove(entry)
            raise
        self._watch(entry)
        return entry.record.as_member(directory=directory, token=token)

    async def _serves(self, entry: _Entry, *, timeout: float) -> Health:
        """Wait for the first answer. Raises LaunchError as soon as there can be none."""
        assert entry.watch is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        pause = 0.004
        while True:
            try:
                health = await entry.client.health(timeout=max(0.1, deadline - loop.time()))
                if health.name == entry.record.name:
                    return health
                raise LaunchError("Another launcher answers at this member's address.", reason="launcher_failed")
            except LauncherUnreachableError:
                if loop.time() >= deadline:
                    raise LaunchTimeoutError(
                        f"The launcher of {entry.record.name} did not answer within {timeout:g} s."
                        f"{self._last_output(entry.record.name)}"
                    ) from None
            except EgKnativeError as error:
                if isinstance(error, LaunchError):
                    raise
                raise LaunchError(
                    f"The launcher of {entry.record.name} cannot be used: {error.message}", reason="launcher_failed"
                ) from error
            if await entry.watch.wait(timeout=pause):
                raise self._failed(entry, "The launcher ended before it served")
            pause = min(1.5 * pause, 0.05)

    async def _undo(self, entry: _Entry) -> None:
        """End a start that is under way, or that came to its end just now."""
        if entry.starting is not None and not entry.starting.done():
            entry.starting.cancel()
            await asyncio.wait({entry.starting})
        if self._members.get(entry.record.name) is entry:
            await self._remove(entry)

    def _failed(self, entry: _Entry, what: str) -> LaunchError:
        code = entry.watch.exit_code if entry.watch is not None else None
        how = f" with code {code}" if code is not None and code >= 0 else ""
        return LaunchError(f"{what}{how}.{self._last_output(entry.record.name)}", reason="launcher_failed")

    def _last_output(self, name: str) -> str:
        text = local_log.tail(self._directory.members / name / LOG_FILE)
        return f" Its last output:\n{text}" if text else ""

    # Adopting

    async def _adopt(self, name: str) -> Member | None:
        directory = self._directory.members / name
        record = read_record(directory)
        if record is None:
            log.warning("Directory %s holds no record of a member; it is removed", directory)
            await asyncio.to_thread(self._directory.remove_member, name, address=None)
            return None
        token = self._token(name)
        entry = _Entry(record=record, client=LauncherClient(address=record.address, token=token))
        self._members[name] = entry
        entry.watch = None if record.launcher is None else ProcessWatch.open(record.launcher)
        if entry.watch is None:
            await self._remove(entry)
            return None
        try:
            health = await self._serves(entry, timeout=ADOPT_TIMEOUT_SECONDS)
        except LaunchError as error:
            log.warning("Member %s is not adopted but ended: %s", name, error.message)
            await self._end(entry, grace_seconds=0)
            return None
        if health.state == "stopping":
            await self._end(entry, grace_seconds=5)
            return None
        self._watch(entry)
        return record.as_member(directory=directory, token=token)

    # Ending

    def _watch(self, entry: _Entry) -> None:
        assert entry.watch is not None
        entry.watch.ended.add_done_callback(lambda _: self._on_end(entry))

    def _on_end(self, entry: _Entry) -> None:
        if entry.ending or self._secret is None:
            return
        name, watch = entry.record.name, entry.watch
        assert watch is not None
        how = words(self._nursery.exit_of(watch.identity.pid), watch.exit_code)
        message = f"The launcher of {name} {how}.{self._last_output(name)}"
        self._own(self._remove(entry), name=f"removal of {name}")
        try:
            self._gone(MemberGone(name=name, reason="launcher_ended", message=message))
        except Exception:
            log.exception("The reader of a member's end failed")

    async def _end(self, entry: _Entry, *, grace_seconds: float) -> None:
        """Ask, then insist, then remove. Several calls may run at once; the shortest grace wins."""
        entry.ending = True
        watch = entry.watch
        assert watch is not None
        try:
            await entry.client.shutdown(grace_seconds=grace_seconds, timeout=min(2.0, grace_seconds + 0.5))
        except EgKnativeError:
            watch.send(signal.SIGTERM)
        if not await watch.wait(timeout=grace_seconds + _MARGIN_SECONDS):
            log.warning("The launcher of %s did not end within %g s and is killed", entry.record.name, grace_seconds)
        await self._remove(entry)

    async def _remove(self, entry: _Entry) -> None:
        """Remove every trace of a member; once, however many ask."""
        entry.ending = True
        if entry.removal is None:
            entry.removal = self._own(self._clear(entry), name=f"clearing of {entry.record.name}")
        await asyncio.shield(entry.removal)

    async def _clear(self, entry: _Entry) -> None:
        name, watch = entry.record.name, entry.watch
        if watch is not None:
            watch.send(signal.SIGKILL)
            if not await watch.wait(timeout=_KILL_SECONDS):
                log.error("The launcher of %s (process %d) cannot be killed", name, watch.identity.pid)
            watch.close()
        try:
            leaders = _sessions(entry.record, self._directory.members / name)
            if left := await asyncio.to_thread(end_sessions, leaders):
                log.error("%d processes of %s cannot be killed", left, name)
            await asyncio.to_thread(self._directory.remove_member, name, address=entry.record.address)
        except OSError as error:
            log.error("The files of %s cannot be removed: %s", name, error)
        finally:
            if self._members.get(name) is entry:
                del self._members[name]

    # Small things

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            paths = [self._directory.members / name / LOG_FILE for name in self._members]
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_trim_all, [*paths, self._directory.nursery_log])

    def _own(self, work: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """A task that `close` waits for and whose unexpected death is logged."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, EgKnativeError):
            log.error("The %s failed", task.get_name(), exc_info=error)

    def _token(self, member_name: str) -> str:
        return member_token(secret=self._opened(), member_name=member_name)

    def _opened(self) -> bytes:
        if self._secret is None:
            raise LaunchError("The local substrate is not open.", reason="closed")
        return self._secret


def _nobody_listens(_: MemberGone) -> None:
    """Before `open`."""


def _directories(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]


def _trim_all(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            local_log.trim(path)


def _sessions(record: MemberRecord, directory: Path) -> list[ProcessIdentity]:
    return [] if record.launcher is None else [record.launcher]
