"""The `local` substrate: members are launcher processes of this machine, recorded in a private run directory.

It exists so that everything runs without a cluster, by the same contract (`contract.py`); a member's own life is
`local_member`'s. It does not isolate kernels from each other or from the gateway: they run as the same user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from eg_knative.errors import ConfigurationError, LaunchError
from eg_knative.names import member_token
from eg_knative.settings import LocalSettings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates import local_log, local_room
from eg_knative.substrates.contract import GoneListener, Member, MemberGone, Room
from eg_knative.substrates.local_directory import RunDirectory
from eg_knative.substrates.local_environment import is_forbidden
from eg_knative.substrates.local_launchers import LauncherStarter
from eg_knative.substrates.local_member import LocalMember
from eg_knative.substrates.local_nursery import Nursery, words
from eg_knative.substrates.local_records import MemberRecord, read_record
from eg_knative.substrates.local_sweep import SessionSweeper
from eg_knative.tasks import OwnedTasks

log = logging.getLogger(__name__)

_TRIM_SECONDS = 5.0
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class LocalSubstrate:
    """See `contract.Substrate`. `environment`: the gateway's own, from which kernels inherit; None: this process's.

    A kernel whose claim names no working directory works in the one that this process had when the object was made.
    """

    name = "local"

    def __init__(self, *, settings: LocalSettings, environment: Mapping[str, str] | None = None) -> None:
        self._settings = settings
        self._run_directory = RunDirectory(settings.run_directory, environment=environment)
        self._nursery = Nursery(log_path=self._run_directory.nursery_log)
        self._starter = LauncherStarter(
            settings=settings,
            nursery=self._nursery,
            environment=dict(os.environ if environment is None else environment),
            working_directory=_current_directory(),
            new_address=self._run_directory.new_address,
        )
        self._memory = local_room.MemoryGauge()
        self._secret: bytes | None = None
        self._gone: GoneListener | None = None
        self._members: dict[str, LocalMember] = {}
        self._tasks = OwnedTasks()
        self._sweeper = SessionSweeper(tasks=self._tasks)
        self._trimming: asyncio.Task[None] | None = None

    async def open(self, *, gone: GoneListener) -> None:
        if not hasattr(os, "pidfd_open"):
            raise ConfigurationError("The local substrate needs Linux 5.3 or newer (pidfd_open).", field="substrate")
        for name in filter(is_forbidden, self._settings.inherited_environment):
            log.warning(
                "%s is not given to kernels before they are claimed: by its name it is a secret or the gateway's own", name
            )
        self._secret = self._run_directory.open()
        self._gone = gone
        self._trimming = self._tasks.own(self._trim_logs(), name="trimming of launchers' logs")

    async def discover(self) -> tuple[Member, ...]:
        self._opened()
        # Before anything else, so that a socket made meanwhile is not taken for nobody's.
        sockets = await asyncio.to_thread(self._run_directory.socket_addresses)
        names = await asyncio.to_thread(_names, self._run_directory.members)
        found = await asyncio.gather(*(self._adopt(name) for name in names if name not in self._members))
        known = {member.record.address for member in self._members.values()}
        await asyncio.to_thread(self._run_directory.remove_sockets, sockets - known)
        return tuple(member for member in found if member is not None)

    async def start(self, *, specification: KernelSpecification, member_name: str) -> Member:
        self._opened()
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
            address=self._run_directory.new_address(),
            created_at=time.time(),
        )
        member = self._new(record)
        member.starting = self._tasks.own(
            member.start(specification=specification, starter=self._starter), name=f"start of {member_name}", awaited=True
        )
        try:
            await asyncio.wait({member.starting})
        except asyncio.CancelledError:
            # Owned by the substrate, so that it goes on to the end even if we are cancelled again.
            await asyncio.shield(self._tasks.own(member.undo(), name=f"undoing of {member_name}", awaited=True))
            raise
        if member.starting.cancelled():
            raise LaunchError(f"Member {member_name} was stopped while it was started.", reason="stopped")
        member.starting.result()
        self._tell_of_its_end(member)
        return member.as_member()

    async def stop(self, *, member_name: str, grace_seconds: float) -> None:
        member = self._members.get(member_name)
        if member is None:
            return
        under_way = member.starting is not None and not member.starting.done()
        work = member.undo() if under_way else member.end(grace_seconds=max(0.0, grace_seconds))
        await asyncio.shield(self._tasks.own(work, name=f"end of {member_name}", awaited=True))

    def room(self) -> Room:
        return local_room.room(
            running=len(self._members),
            maximum=self._settings.maximum_processes,
            available_bytes=self._memory.available_bytes(),
            minimum_free_bytes=self._settings.minimum_free_memory_bytes,
        )

    async def close(self) -> None:
        self._gone = None
        self._secret = None
        if self._trimming is not None:
            self._trimming.cancel()
        under_way = [member for member in self._members.values() if member.starting is not None and not member.starting.done()]
        await asyncio.gather(*(member.undo() for member in under_way))
        await self._tasks.close()
        for member in self._members.values():
            if member.watch is not None:
                member.watch.close()
        self._members.clear()
        await self._nursery.close()
        self._run_directory.close()

    async def _adopt(self, name: str) -> Member | None:
        directory = self._run_directory.members / name
        record = read_record(directory)
        if record is None:
            log.warning("Directory %s holds no record of a member; it is removed", directory)
            await asyncio.to_thread(self._run_directory.remove_member, name, address=None)
            return None
        member = self._new(record)
        try:
            adopted = await member.adopt()
        except asyncio.CancelledError:
            # It lives, and the next call to `discover` must find it anew.
            self._forget(member)
            if member.watch is not None:
                member.watch.close()
            raise
        if not adopted:
            return None
        self._tell_of_its_end(member)
        return member.as_member()

    def _new(self, record: MemberRecord) -> LocalMember:
        member = LocalMember(
            record=record,
            token=member_token(secret=self._opened(), member_name=record.name),
            run_directory=self._run_directory,
            tasks=self._tasks,
            sweeper=self._sweeper,
            cleared=self._forget,
        )
        self._members[record.name] = member
        return member

    def _forget(self, member: LocalMember) -> None:
        if self._members.get(member.name) is member:
            del self._members[member.name]

    def _tell_of_its_end(self, member: LocalMember) -> None:
        if member.watch is not None:
            member.watch.ended.add_done_callback(lambda _: self._on_end(member))

    def _on_end(self, member: LocalMember) -> None:
        watch = member.watch
        if member.ending or self._gone is None or watch is None:
            return
        how = words(self._nursery.exit_of(watch.identity.pid), watch.exit_code)
        message = f"The launcher of {member.name} {how}.{member.last_output()}"
        self._tasks.own(member.clear(), name=f"removal of {member.name}")
        try:
            self._gone(MemberGone(name=member.name, reason="launcher_ended", message=message))
        except Exception:
            log.exception("The reader of a member's end failed")

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_SECONDS)
            paths = [self._run_directory.nursery_log, *(member.log_path for member in self._members.values())]
            await asyncio.to_thread(_trim_all, paths)

    def _opened(self) -> bytes:
        if self._secret is None:
            raise LaunchError("The local substrate is not open.", reason="closed")
        return self._secret


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed under our feet
        return "/"


def _names(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]


def _trim_all(paths: list[Path]) -> None:
    for path in paths:
        # A member may go away meanwhile, and its log with it.
        with contextlib.suppress(OSError):
            local_log.trim(path)
