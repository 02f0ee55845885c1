"""What the contract suite needs to know of a substrate beyond the contract, and how it counts what is left.

A *house* is one place where members may live: it makes substrate objects over the same state, kills a launcher as a fault would,
and lists every trace of members. Another substrate joins the suite with a house of its own in `HOUSES`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from eg_knative.settings import LocalSettings
from eg_knative.substrates.contract import Member, MemberGone, Substrate
from eg_knative.substrates.local import LocalSubstrate

PR_SET_CHILD_SUBREAPER = 36


class House(Protocol):
    """One kind of substrate under test."""

    substrate_name: str
    gone: list[MemberGone]

    async def open(self) -> Substrate:
        """A fresh substrate object over the house's state, open. The house closes it at the end if the test did not."""

    def kill_launcher(self, member: Member) -> None:
        """End the member's launcher without warning."""

    def traces(self) -> dict[str, list[str]]:
        """What exists of members now, by kind; each list empty in an empty house."""

    async def close(self) -> None:
        """End every member and close every substrate."""


class LocalHouse:
    """Processes of this machine. This process is a subreaper meanwhile, so that no descendant can get away uncounted."""

    substrate_name = "local"

    def __init__(self, directory: Path) -> None:
        self.gone: list[MemberGone] = []
        self._settings = LocalSettings(run_directory=directory / "run", minimum_free_memory_bytes=1, maximum_processes=30)
        self._open: list[LocalSubstrate] = []
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = {process.pid for process in _descendants()}

    async def open(self) -> Substrate:
        substrate = LocalSubstrate(settings=self._settings)
        await substrate.open(gone=self.gone.append)
        self._open.append(substrate)
        return substrate

    def kill_launcher(self, member: Member) -> None:
        os.kill(int(member.where["pid"]), signal.SIGKILL)

    def traces(self) -> dict[str, list[str]]:
        run = self._settings.run_directory
        zygotes = {"eg-launcher-nursery"}
        return {
            "processes": [
                f"{process.pid} {' '.join(command)}"
                for process in _descendants()
                if process.pid not in self._before and (command := _command(process)) and not zygotes & set(command)
            ],
            "files": [str(path) for name in ("members", "s") for path in (run / name).rglob("*")],
        }

    def nursery_processes(self) -> list[int]:
        """The zygotes of this gateway, which are no trace of a member but must end with the gateway."""
        return [p.pid for p in _descendants() if p.pid not in self._before and "eg-launcher-nursery" in _command(p)]

    async def close(self) -> None:
        for substrate in self._open:
            await substrate.close()
        substrate = LocalSubstrate(settings=self._settings)
        await substrate.open(gone=self.gone.append)
        for member in await substrate.discover():
            await substrate.stop(member_name=member.name, grace_seconds=1)
        await substrate.close()
        assert self.nursery_processes() == []
        assert _popen_children() == set(), "children that nobody reaped"
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


HOUSES: dict[str, Callable[[Path], House]] = {"local": LocalHouse}


@dataclasses.dataclass(frozen=True)
class Belongings:
    """What this process holds: descriptors by what they lead to, and threads."""

    descriptors: int

    @classmethod
    def now(cls) -> Belongings:
        return cls(descriptors=len(os.listdir("/proc/self/fd")))


def _descendants() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                # Orphans come to us as subreaper; elsewhere init would reap them.
                if process.ppid() == os.getpid() and process.pid not in _popen_children():
                    os.waitpid(process.pid, os.WNOHANG)
                continue
        except (psutil.NoSuchProcess, ChildProcessError):
            continue
        found.append(process)
    return found


def _popen_children() -> set[int]:
    from eg_knative.substrates.local_processes import _children

    return set(_children)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [process.name()]
    except psutil.NoSuchProcess:
        return []
