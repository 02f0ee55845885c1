"""The place of one kernel: which process is in it, on which ports, with which identity, and what follows when it ends.

Starts, stops and restarts go through one lock, which the callers of `start` and `stop` hold. Whether a kernel is wanted, and
by whom, is `launcher`'s and `claiming`'s business.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import signal
import socket
import time
from typing import Any

from eg_launcher import identity as identities
from eg_launcher import sessions
from eg_launcher.config import Config
from eg_launcher.errors import KernelStartError, ZygoteError
from eg_launcher.identity import Identity
from eg_launcher.kernel import KernelProcess, KernelStarter
from eg_launcher.messages import KernelChannels, close_context
from eg_launcher.ports import PortReservation
from eg_launcher.reaper import Reaper
from eg_launcher.spare import Spare
from eg_launcher.status import Status
from eg_launcher.tasks import Tasks
from eg_launcher.usage import descendants
from eg_launcher.zygote_client import Zygote, interpreter_of

log = logging.getLogger("eg_launcher")

_RESTART_WINDOW_SECONDS = 60.0
# How long a kernel that is asked to end may keep its ports: an idle one, and one whose cell was interrupted first.
_IDLE_LEAVES_WITHIN_SECONDS = 2.0
_BUSY_LEAVES_WITHIN_SECONDS = 0.3
# How long it may go on without them, for exit handlers and open files, while its successor serves. As jupyter_client waits.
_FAREWELL_SECONDS = 5.0
_PORTS_LOOKED_AT_EVERY_SECONDS = 0.002
_ACTIVATE_SECONDS = 5.0


class KernelPlace:
    """Make it on the event loop; `close` leaves no process, file or port behind."""

    def __init__(self, *, config: Config, identity: Identity, status: Status, tasks: Tasks) -> None:
        self.config = config
        self.identity = identity
        self.claimed = False
        self.kernel: KernelProcess | None = None
        self.lock = asyncio.Lock()
        self.reservation = PortReservation(ip=config.ip, wanted=config.ports)
        self._status = status
        self._tasks = tasks
        self._reaper = Reaper()
        self.starter = KernelStarter(config=config, reservation=self.reservation, reaper=self._reaper)
        self._spare = Spare(starter=self.starter, timeout_seconds=config.kernel.start_timeout_seconds, on_failure=status.note)
        self.channels: KernelChannels | None = None
        self._automatic: collections.deque[float] = collections.deque(maxlen=1000)

    @property
    def living(self) -> KernelProcess | None:
        """The kernel, if it has not ended."""
        return self.kernel if self.kernel is not None and self.kernel.alive else None

    def connection(self) -> dict[str, Any]:
        """Jupyter's connection information of the present identity."""
        return identities.connection_info(identity=self.identity, ip=self.config.ip, ports=self.reservation.ports)

    def open(self) -> None:
        """Take over SIGCHLD and make the connection directory. Raises OSError."""
        os.makedirs(self.config.connection_directory, mode=0o700, exist_ok=True)
        self._reaper.start()

    async def start_zygote(self, sock: socket.socket | None) -> str | None:
        """Start a zygote, or speak to the one that was forked beside us; returns a notice."""
        kernel = self.config.kernel
        parts = interpreter_of(kernel.argv)
        if parts is None or not kernel.zygote:
            if sock is not None:
                sock.close()
            return None
        try:
            if sock is not None:
                self.starter.zygote = await Zygote.adopt(sock, on_death=self._zygote_died)
            else:
                self.starter.zygote = await Zygote.start(
                    python=parts[0],
                    env=kernel.env,
                    cwd=self.identity.working_directory,
                    pre_import=kernel.pre_import,
                    log_fd=2,
                    on_death=self._zygote_died,
                    timeout_seconds=kernel.start_timeout_seconds,
                )
        except ZygoteError as error:
            return f"No zygote: {error}"
        return "; ".join(self.starter.zygote.notices) or None

    def _zygote_died(self, why: str) -> None:
        zygote, self.starter.zygote = self.starter.zygote, None
        self._status.note(f"The zygote is gone: {why}; kernels are started without it")
        if zygote is not None:
            self._tasks.spawn(zygote.close(), "close the zygote")

    def write_connection_file(self) -> None:
        """For the present identity. Raises OSError."""
        identities.write_connection_file(path=self.identity.connection_file, info=self.connection())

    async def start(self, *, notice: str | None = None, spare: KernelProcess | None = None) -> None:
        """Start or activate a kernel for the present identity, as the next generation. Raises KernelStartError."""
        status = self._status
        self.write_connection_file()
        status.set_kernel_state("restarting" if status.generation else "starting")
        deadline = time.monotonic() + self.config.kernel.start_timeout_seconds
        notices = [notice] if notice else []
        kernel: KernelProcess | None = None
        started_by = "spare"
        if spare is not None:
            try:
                await self.starter.activate(spare, deadline=min(deadline, time.monotonic() + _ACTIVATE_SECONDS))
                kernel = spare
            except KernelStartError as error:
                notices.append(f"The spare could not be used: {error}")
                await spare.kill()
                self._kill_strays()
        if kernel is None:
            kernel, more = await self.starter.start(identity=self.identity, bind=True, final=self.claimed, deadline=deadline)
            notices += more
            started_by = kernel.started_by
        self.kernel = kernel
        status.generation += 1
        status.started_by = started_by
        status.notice = "; ".join(notices) or None
        if self.claimed:
            self.open_channels()
        status.set_kernel_state("idle")
        self._tasks.spawn(self._watch(kernel, status.generation), f"watch kernel {status.generation}")

    async def stop(self, *, ask: bool, busy: bool = False) -> None:
        """Free the place. `ask`: the kernel is asked to end (`busy`: after an interrupt) and may finish in the background what it
        does at exit, once its ports are free; killed if it does not let go of them. Else it is killed at once."""
        kernel, self.kernel = self.kernel, None
        if kernel is None:
            return
        left = self.channels is not None and ask and kernel.alive and await self._leaves(kernel, busy=busy)
        await self._close_channels()
        if left:
            self._tasks.spawn(self._see_off(kernel), f"end of kernel process {kernel.pid}")
        else:
            await kernel.kill()

    async def _leaves(self, kernel: KernelProcess, *, busy: bool) -> bool:
        """Ask the kernel to end; whether it let go of its ports in time."""
        assert self.channels is not None
        if busy and self.config.kernel.interrupt_mode == "signal":
            kernel.signal(signal.SIGINT)
        deadline = time.monotonic() + (_BUSY_LEAVES_WITHIN_SECONDS if busy else _IDLE_LEAVES_WITHIN_SECONDS)
        try:
            await self.channels.ask(kind="shutdown_request", content={"restart": True})
        except asyncio.TimeoutError:
            return False
        while time.monotonic() < deadline:
            if self.reservation.unheard():
                return True
            await asyncio.wait({kernel.exited}, timeout=_PORTS_LOOKED_AT_EVERY_SECONDS)
        return False

    async def _see_off(self, kernel: KernelProcess) -> None:
        """Wait for a kernel that has left its place; then end it and what it left in its group."""
        try:
            await asyncio.wait({kernel.exited}, timeout=_FAREWELL_SECONDS)
            await kernel.kill()
        finally:
            kernel.signal(signal.SIGKILL)
            kernel.release()

    async def restart(self) -> None:
        """With the spare, if there is one. Raises KernelStartError."""
        await self.start(spare=await self._spare.take())
        self._status.restarts += 1

    def prepare_spare(self) -> None:
        """Begin to make one for the next restart."""
        if self.config.kernel.spare and self.claimed and not self._status.over:
            self._spare.prepare(self.identity)

    def forgive(self) -> None:
        """Somebody asked for the kernel: automatic restarts are counted anew."""
        self._automatic.clear()

    async def _watch(self, kernel: KernelProcess, generation: int) -> None:
        """Wait for the end of a kernel, and if nobody asked for it, say why and restart it as the policy says."""
        await asyncio.shield(kernel.exited)
        status = self._status
        if self.kernel is not kernel or status.over:
            return
        ended = kernel.how_it_ended()
        log.warning("Kernel %d ended unasked: %s", generation, ended["reason"])
        policy = self.config.kernel.auto_restart
        wanted = policy == "always" or (policy == "on_failure" and ended["code"] != 0)
        restart = wanted and self._may_restart()
        status.record_exit(ended, restarted=restart)
        kernel.signal(signal.SIGKILL)
        kernel.release()
        status.set_kernel_state("dead")
        if wanted and not restart:
            count = self.config.kernel.restart_limit + 1
            status.fail(f"The kernel ended {count} times within {_RESTART_WINDOW_SECONDS:g} s. {ended['message']}")
        if restart:
            async with self.lock:
                if self.kernel is kernel and not status.over:
                    await self._restart_by_itself()

    def _may_restart(self) -> bool:
        now = time.monotonic()
        while self._automatic and self._automatic[0] < now - _RESTART_WINDOW_SECONDS:
            self._automatic.popleft()
        if len(self._automatic) >= self.config.kernel.restart_limit:
            return False
        self._automatic.append(now)
        return True

    async def _restart_by_itself(self) -> None:
        self.kernel = None
        await self._close_channels()
        try:
            await self.restart()
        except KernelStartError as error:
            self._status.record_exit(error.exit, restarted=False)
            self._status.set_kernel_state("dead")
            self._status.fail(f"The kernel could not be restarted: {error}")
            return
        self.prepare_spare()

    def open_channels(self) -> KernelChannels:
        """Follow the kernel. An unclaimed launcher does not: it has none of libzmq's threads."""
        _, iopub, _, control, _ = self.reservation.ports
        self.channels = KernelChannels(
            ip=self.config.ip,
            iopub_port=iopub,
            control_port=control,
            key=self.identity.key,
            python=self.starter.is_ipykernel,
            on_state=self._on_kernel_state,
        )
        return self.channels

    async def _close_channels(self) -> None:
        channels, self.channels = self.channels, None
        if channels is not None:
            await channels.close()

    def _on_kernel_state(self, state: str) -> None:
        if state != "starting" and self.living is not None and state != self._status.kernel_state:
            self._status.set_kernel_state(state)

    def _kill_strays(self) -> None:
        """Processes that outlived a kernel may hold its ports; they are ours, by adoption."""
        zygote = self.starter.zygote
        keep = {zygote.pid if zygote is not None else 0, self.kernel.pid if self.kernel is not None else 0}
        _kill(pid for pid in descendants(os.getpid()) if pid not in keep)

    async def close(self) -> None:
        """End everything below this process. Tasks that use the place must have ended."""
        await self._spare.discard()
        await self._close_channels()
        if self.living is not None:
            await self.living.kill()
        if self.starter.zygote is not None:
            await self.starter.zygote.close(timeout_seconds=1.0)
        # What a user's code left running elsewhere than in the kernel's group became ours when its parent ended.
        _kill(descendants(os.getpid()))
        identities.remove(self.identity.connection_file)
        identities.remove(os.path.join(self.config.connection_directory, sessions.FILE))
        self.reservation.release()
        self._reaper.stop()
        close_context()


def _kill(pids: Any) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
