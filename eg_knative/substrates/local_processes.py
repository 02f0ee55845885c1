"""Processes that are not necessarily our children: who they are, when they end, and how to end them for certain.

A process id alone is not enough, because ids are used again: a process is known by its id, its start time and the
boot of the machine, and is signalled through a pidfd only (Linux 5.3). Nothing here knows what a launcher is.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_PROC = Path("/proc")
_SESSION, _STARTED = 3, 19  # positions after the command name in /proc/PID/stat (proc(5): fields 6 and 22)
_SWEEP_SECONDS = 5.0

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Processes started by `spawn` and not reaped yet. One per process, because children are a process's, not an object's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """One process, for ever. `started_ticks`: clock ticks since the machine's boot, as /proc tells."""

    pid: int
    started_ticks: int
    machine_boot: str


def machine_boot() -> str:
    """The random id of this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessIdentity | None:
    """Who runs under `pid` now; None when nobody does, or only a zombie."""
    fields = _stat(pid)
    if fields is None or fields[0] in ("Z", "X"):
        return None
    return ProcessIdentity(pid=pid, started_ticks=int(fields[_STARTED]), machine_boot=machine_boot())


class ProcessWatch:
    """Learns of one process's end at once, through a pidfd on the event loop. Close it."""

    def __init__(self, identity: ProcessIdentity, descriptor: int) -> None:
        self.identity = identity
        self.exit_code: int | None = None
        """Exit code, or minus the signal; known of children of this process only."""
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._descriptor: int | None = descriptor
        self._loop.add_reader(descriptor, self._on_end)

    @classmethod
    def open(cls, identity: ProcessIdentity) -> ProcessWatch | None:
        """None when that process is gone, even if another runs under its id."""
        try:
            descriptor = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return None
        # In this order: the pidfd fixes whom we look at, the comparison tells whether it is the right one.
        if identify(identity.pid) != identity:
            os.close(descriptor)
            return None
        return cls(identity, descriptor)

    def send(self, signum: signal.Signals) -> None:
        """Signal the process if it still runs."""
        if self._descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signum)

    async def wait(self, *, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds."""
        await asyncio.wait({self.ended}, timeout=timeout)
        return self.ended.done()

    def close(self) -> None:
        """Stop watching; the process is left alone. Idempotent."""
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _on_end(self) -> None:
        self.exit_code = reap(self.identity.pid)
        self.close()
        if not self.ended.done():
            self.ended.set_result(None)


def spawn(argv: Sequence[str], *, env: Mapping[str, str], directory: Path, output: int) -> int:
    """Start a program in a session of its own and return its id. Blocking. Raises OSError."""
    child = subprocess.Popen(
        list(argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(env), cwd=directory, start_new_session=True
    )
    _children[child.pid] = child
    return child.pid


def reap(pid: int) -> int | None:
    """Collect the exit code of a child started by `spawn` that has ended; None for anybody else."""
    child = _children.get(pid)
    if child is None or child.poll() is None:
        return None
    del _children[pid]
    return child.returncode


def discard(pid: int) -> None:
    """End a process that was started a moment ago and that nobody wants. Blocking until it has ended, if it is our child."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    child = _children.pop(pid, None)
    if child is not None:
        child.wait()


def listener_of(path: str) -> int | None:
    """The process that listens on a Unix socket, as the system tells (SO_PEERCRED); None when nobody does. Does not block."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
            pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        except OSError:
            return None
    return int(pid)


def end_sessions(leaders: Iterable[ProcessIdentity]) -> int:
    """Kill what still runs in the sessions that these processes led, and the leaders themselves. Blocking, up to 5 s.

    A program that a kernel started survives both its kernel and the launcher, but stays in the kernel's session. A
    number whose leader is another process by now is left alone. Returns how many processes were still there at the
    end.
    """
    boot = machine_boot()
    by_number = {leader.pid: leader for leader in leaders if leader.machine_boot == boot}
    deadline = time.monotonic() + _SWEEP_SECONDS
    while True:
        left = _members_of(by_number) if by_number else []
        for identity in left:
            _kill(identity)
        if not left or time.monotonic() >= deadline:
            return len(left)
        time.sleep(0.01)


def _members_of(leaders: Mapping[int, ProcessIdentity]) -> list[ProcessIdentity]:
    found: list[tuple[int, ProcessIdentity]] = []
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        fields = _stat(pid)
        if fields is None or fields[0] in ("Z", "X") or int(fields[_SESSION]) not in leaders:
            continue
        number = int(fields[_SESSION])
        boot = leaders[number].machine_boot
        found.append((number, ProcessIdentity(pid=pid, started_ticks=int(fields[_STARTED]), machine_boot=boot)))
    foreign = {number for number, identity in found if identity.pid == number and identity != leaders[number]}
    return [
        identity
        for number, identity in found
        if number not in foreign and identity.started_ticks >= leaders[number].started_ticks
    ]


def _kill(identity: ProcessIdentity) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        descriptor = os.pidfd_open(identity.pid)
        try:
            if identify(identity.pid) == identity:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
