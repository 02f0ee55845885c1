"""One kernel process: start it the fastest way that works, wait until it is bound, promote it, signal it, see it end.

Ways, fastest first: `fork` from the zygote, `exec` of the kernel's interpreter with our code inside, `plain` as the kernelspec
says. A way that fails is a notice and the next one is tried, all within one deadline. Restarting, policy and state are
`launcher`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eg_launcher import framing, sessions
from eg_launcher.config import Config
from eg_launcher.errors import FramingError, KernelStartError, LauncherError, ZygoteError
from eg_launcher.exits import MemoryKills, describe_exit
from eg_launcher.identity import Identity
from eg_launcher.messages import wait_until_bound
from eg_launcher.output import OutputTail
from eg_launcher.ports import PortReservation
from eg_launcher.reaper import Reaper
from eg_launcher.zygote_client import TITLE_ROOM, Zygote, interpreter_of

_HERE = Path(__file__).parent
_PROMOTE_SECONDS = 5.0


class KernelProcess:
    """A started kernel, leader of its own session and process group."""

    def __init__(
        self, *, pid: int, started_by: str, output: OutputTail, exited: asyncio.Future[int], channel: framing.Channel | None
    ) -> None:
        self.pid = pid
        self.started_by = started_by
        self.exited = exited
        self.bound = False
        self._output = output
        self._channel = channel
        self._memory_kills = MemoryKills()

    @property
    def alive(self) -> bool:
        """Not yet reaped."""
        return not self.exited.done()

    @property
    def promotable(self) -> bool:
        """It still listens to its launcher."""
        return self._channel is not None and self.alive

    async def expect(self, op: str, *, within_seconds: float) -> dict[str, Any]:
        """The kernel's next message, which must be this one. Raises KernelStartError: it ended, failed, or took too long."""
        if self._channel is None:
            raise self.failed("The kernel cannot be spoken to")
        receiving = asyncio.ensure_future(self._channel.receive())
        either: set[asyncio.Future[Any]] = {receiving, self.exited}
        try:
            await asyncio.wait(either, timeout=within_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not receiving.done():
                if self.exited.done():
                    raise self.failed("The kernel ended before it could be used")
                raise self.failed(f"The kernel was not {op} within {within_seconds:.3g} s", timed_out=True)
            try:
                message = receiving.result()
            except (OSError, FramingError) as error:
                raise self.failed(f"The kernel could not be spoken to: {error}") from error
            if message is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self.exited), 1.0)
                raise self.failed("The kernel ended before it could be used")
            if message.get("op") != op:
                raise self.failed(f"The kernel failed inside: {str(message.get('message', 'no reason given'))[:1000]}")
            return message
        finally:
            if not receiving.done():
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)

    async def tell(self, message: dict[str, Any]) -> None:
        """Raises KernelStartError."""
        if self._channel is None:
            raise self.failed("The kernel cannot be spoken to")
        try:
            await asyncio.wait_for(self._channel.send(message), _PROMOTE_SECONDS)
        except (OSError, FramingError, asyncio.TimeoutError) as error:
            raise self.failed(f"The kernel could not be spoken to: {error}") from error

    async def promote(self, identity: Identity, *, argv: Sequence[str]) -> float:
        """Give the running kernel another identity, its last; returns the seconds it took inside. Raises KernelStartError."""
        await self.tell({"op": "promote", "identity": identity.for_kernel(argv)})
        message = await self.expect("promoted", within_seconds=_PROMOTE_SECONDS)
        self.stop_listening()
        seconds = message.get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else 0.0

    def stop_listening(self) -> None:
        """From now on nothing that the kernel's process says is heard. Idempotent."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def signal(self, signum: int) -> None:
        """Signal its process group, or itself while it has none. A kernel that is gone is no error."""
        try:
            os.killpg(self.pid, signum)
        except (ProcessLookupError, PermissionError):
            if self.alive:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(self.pid, signum)

    async def kill(self) -> None:
        """SIGKILL the group and wait until the kernel is reaped. Raises asyncio.TimeoutError after 5 s (a kernel in the
        system's uninterruptible sleep)."""
        self.signal(signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(self.exited), 5.0)
        self.release()

    def release(self) -> None:
        """Let go of descriptors. Idempotent."""
        self.stop_listening()
        self._output.close()

    def how_it_ended(self) -> dict[str, Any]:
        """The protocol's `exit` without `generation` and `restarted`. The kernel must have been reaped."""
        return describe_exit(status=self.exited.result(), tail=self._output.text(), memory_killed=self._memory_kills.grew())

    def failed(self, message: str, *, timed_out: bool = False) -> KernelStartError:
        """An error that says what is known of this process."""
        if self.exited.done() and not self.exited.cancelled():
            ended = self.how_it_ended()
            return KernelStartError(f"{message}. {ended['message']}", exit=ended)
        tail = self._output.text()
        words = f"{message}. Last output: {tail}" if tail else message
        exit_ = {"code": None, "signal": None, "reason": "never_bound", "message": words}
        return KernelStartError(words, exit=exit_, timed_out=timed_out)


class KernelStarter:
    """Starts kernels for one configuration. `zygote` may be set or taken away at any time."""

    def __init__(self, *, config: Config, reservation: PortReservation, reaper: Reaper) -> None:
        self.zygote: Zygote | None = None
        self._config = config
        self._argv = config.kernel.argv
        self._ports = reservation.ports
        self._reservation = reservation
        self._reaper = reaper
        self._python = interpreter_of(self._argv)

    @property
    def is_ipykernel(self) -> bool:
        """Whether our code can run inside."""
        return self._python is not None

    def check_program(self, identity: Identity) -> None:
        """Raises KernelStartError (`not_found`) at once when argv[0] is no program in that environment."""
        program = self._argv[0]
        if os.sep in program:
            program = os.path.join(identity.working_directory, program)  # as exec looks for it
        if shutil.which(program, path=identity.env.get("PATH", os.defpath)) is None:
            message = f"The kernel's program {program} was not found or cannot be executed"
            raise KernelStartError(message, exit={"code": None, "signal": None, "reason": "not_found", "message": message})

    async def start(self, *, identity: Identity, bind: bool, final: bool, deadline: float) -> tuple[KernelProcess, list[str]]:
        """A kernel that is bound, or initialised without being bound (a spare), and why faster ways were not taken.

        `final`: nobody else takes it over; its control socket is closed once bound. `deadline`: on `time.monotonic`.

        Raises KernelStartError. When cancelled, what was started is killed.
        """
        self.check_program(identity)
        notices: list[str] = []
        if self.is_ipykernel:
            if self._config.kernel.zygote and self.zygote is not None:
                try:
                    return await self._inside("fork", identity=identity, bind=bind, final=final, deadline=deadline), notices
                except LauncherError as error:
                    notices.append(f"Not forked from the zygote: {error}")
            try:
                return await self._inside("exec", identity=identity, bind=bind, final=final, deadline=deadline), notices
            except KernelStartError as error:
                if not bind or error.timed_out:
                    raise
                notices.append(f"Started plainly: {error}")
        try:
            return await self._plain(identity=identity, deadline=deadline), notices
        except KernelStartError as error:
            if "in use" not in str(error):
                raise
        # A kernel that does not set SO_REUSEADDR cannot share its ports with their reservation.
        self._reservation.release()
        notices.append("The kernel does not share reserved ports, so they are reserved no longer")
        return await self._plain(identity=identity, deadline=deadline), notices

    async def activate(self, spare: KernelProcess, *, deadline: float) -> None:
        """Have a spare bind. Raises KernelStartError."""
        await spare.tell({"op": "activate"})
        await spare.expect("bound", within_seconds=deadline - time.monotonic())
        spare.bound = True
        spare.stop_listening()

    async def _inside(self, way: str, *, identity: Identity, bind: bool, final: bool, deadline: float) -> KernelProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = framing.Channel(ours, limit=framing.LARGEST_FROM_KERNEL)
        output = OutputTail()
        try:
            if way == "fork":
                if self.zygote is None:
                    raise ZygoteError("There is no zygote")
                pid = await self.zygote.fork_kernel(control_fd=theirs.fileno(), output_fd=output.write_fd)
            else:
                assert self._python is not None
                program = [*self._python[0], str(_HERE / "run.py"), "kernel", str(theirs.fileno()), " " * TITLE_ROOM]
                pid = self._spawn(program, identity=identity, output=output, pass_fds=(theirs.fileno(),))
        except LauncherError:
            channel.close()
            output.close()
            raise
        finally:
            theirs.close()
            output.started()
        sessions.note(self._config.connection_directory, pid)
        kernel = KernelProcess(pid=pid, started_by=way, output=output, exited=self._reaper.watch(pid), channel=channel)
        return await self._or_kill(kernel, self._boot(kernel, identity=identity, bind=bind, final=final, deadline=deadline))

    async def _boot(self, kernel: KernelProcess, *, identity: Identity, bind: bool, final: bool, deadline: float) -> None:
        boot = {
            "op": "boot",
            "launcher_pid": os.getpid(),
            "identity": identity.for_kernel(self._argv),
            "ip": self._config.ip,
            "ports": list(self._ports),
            "bind": bind,
            "final": final or not bind,
        }
        await kernel.tell(boot)
        await kernel.expect("bound" if bind else "initialised", within_seconds=deadline - time.monotonic())
        kernel.bound = bind
        if bind and final:
            kernel.stop_listening()

    async def _plain(self, *, identity: Identity, deadline: float) -> KernelProcess:
        output = OutputTail()
        program = [sys.executable, "-I", "-S", str(_HERE / "exec.py"), str(os.getpid()), *identity.argv(self._argv)]
        try:
            pid = self._spawn(program, identity=identity, output=output, pass_fds=())
        except LauncherError:
            output.close()
            raise
        sessions.note(self._config.connection_directory, pid)
        kernel = KernelProcess(pid=pid, started_by="plain", output=output, exited=self._reaper.watch(pid), channel=None)
        return await self._or_kill(kernel, self._answered(kernel, key=identity.key, deadline=deadline))

    async def _answered(self, kernel: KernelProcess, *, key: str, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        asking = asyncio.ensure_future(wait_until_bound(ip=self._config.ip, shell_port=self._ports[0], key=key))
        either: set[asyncio.Future[Any]] = {asking, kernel.exited}
        try:
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if kernel.exited.done():
                raise kernel.failed("The kernel ended before it answered")
            if not asking.done():
                raise kernel.failed(f"The kernel did not answer within {seconds:.3g} s", timed_out=True)
            asking.result()
            kernel.bound = True
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _or_kill(self, kernel: KernelProcess, work: Any) -> KernelProcess:
        try:
            await work
        except BaseException:
            kernel.signal(signal.SIGKILL)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(kernel.exited), 5.0)
            kernel.release()
            raise
        return kernel

    def _spawn(self, program: Sequence[str], *, identity: Identity, output: OutputTail, pass_fds: tuple[int, ...]) -> int:
        try:
            process = subprocess.Popen(
                list(program),
                stdin=subprocess.DEVNULL,
                stdout=output.write_fd,
                stderr=output.write_fd,
                env=dict(identity.env),
                cwd=identity.working_directory,
                pass_fds=pass_fds,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            message = f"The kernel's process could not be started: {error}"
            raise KernelStartError(
                message, exit={"code": None, "signal": None, "reason": "not_found", "message": message}
            ) from error
        process.returncode = 0  # the reaper waits for it; Popen must not
        return process.pid
