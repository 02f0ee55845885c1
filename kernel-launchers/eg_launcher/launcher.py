"""One member from boot to end: what a gateway may ask of it, how long it waits to be asked, how it ends.

Puts the parts together: `status` (what it tells), `place` (its kernel), `claiming` (its promotion). Shutdown goes past the
place's lock, because ending must always work. The HTTP is `app`'s, the process's life `__main__`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from typing import Any

from eg_launcher import identity as identities
from eg_launcher.claiming import Claiming, kernel_error
from eg_launcher.config import Config
from eg_launcher.errors import KernelStartError, RequestError
from eg_launcher.identity import Identity
from eg_launcher.kernel import KernelProcess
from eg_launcher.place import KernelPlace
from eg_launcher.protocol import Beat, Promotion
from eg_launcher.status import Status
from eg_launcher.tasks import Tasks
from eg_launcher.usage import Usage, measure

log = logging.getLogger("eg_launcher")

_FAILED_LINGER_SECONDS = 10.0
EXIT_ASKED, EXIT_CONFIGURATION, EXIT_KERNEL, EXIT_INTERNAL = 0, 2, 3, 4


class Launcher:
    """One member. Make it on the event loop; `run` until it returns the exit code."""

    def __init__(self, config: Config, *, zygote_socket: socket.socket | None = None) -> None:
        self.config = config
        self.boot_id = secrets.token_hex(16)
        self.status = Status()
        self._zygote_socket = zygote_socket
        self._tasks = Tasks(on_failure=self._failed_inside)
        self._place = KernelPlace(config=config, identity=self._pool_identity(), status=self.status, tasks=self._tasks)
        self._claiming = Claiming(boot_id=self.boot_id, place=self._place, status=self.status, tasks=self._tasks)
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._restarting: asyncio.Task[dict[str, Any]] | None = None
        self._stop_by: float | None = None
        self._wanted_at = time.monotonic()

    # Life

    async def run(self) -> int:
        """Boot, serve until the end, leave nothing behind; returns the process's exit code."""
        self._place.open()
        self._tasks.spawn(self._boot(), "boot")
        self._tasks.spawn(self._give_up_when_unwanted(), "timeouts")
        try:
            return await self._ended
        finally:
            await self._tasks.cancel()
            await self._place.close()

    async def _boot(self) -> None:
        kernel, place = self.config.kernel, self._place
        early = kernel.start == "boot" or (kernel.start == "auto" and place.starter.is_ipykernel)
        try:
            if early:
                place.starter.check_program(place.identity)
            notice = await place.start_zygote(self._zygote_socket)
            if early:
                async with place.lock:
                    await place.start(notice=notice)
            else:
                self.status.notice = notice
        except KernelStartError as error:
            self.status.record_exit(error.exit, restarted=False)
            self.status.set_kernel_state("dead")
            self.status.fail(str(error))
            return
        if self.status.state == "starting":
            self.status.set_state("ready")

    def _pool_identity(self) -> Identity:
        kernel, directory = self.config.kernel, self.config.connection_directory
        return Identity(
            kernel_id="",
            kernel_name=kernel.kernel_name,
            username="",
            env=kernel.env,
            working_directory=kernel.working_directory or directory,
            key=identities.new_key(),
            connection_file=os.path.join(directory, f"kernel-{self.boot_id}.json"),
        )

    async def _give_up_when_unwanted(self) -> None:
        while True:
            claimed, failed = self._place.claimed, self.status.state == "failed"
            limit = self.config.abandoned_timeout_seconds if claimed else self.config.unclaimed_timeout_seconds
            since = self._wanted_at
            if failed and not claimed:
                # Long enough for its reason to be read.
                limit = min(limit, _FAILED_LINGER_SECONDS)
                since = self.status.failed_at or since
            elif self.status.listeners:
                self._wanted_at = since = time.monotonic()
            left = since + limit - time.monotonic()
            if left <= 0:
                log.info("Nobody has asked for this member for %g s; it ends", limit)
                if failed and not claimed:
                    self._end(EXIT_KERNEL)
                else:
                    self.shutdown(grace_seconds=2.0)
                return
            await asyncio.sleep(min(left, max(0.05, limit / 20), 5.0))

    def _failed_inside(self) -> None:
        self.status.fail("The launcher itself failed; its log says more")
        self._end(EXIT_INTERNAL)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def shutdown(self, *, grace_seconds: float) -> None:
        """Begin to end, or end sooner; returns at once."""
        by = time.monotonic() + grace_seconds
        first = self._stop_by is None
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        if first:
            self.status.set_state("stopping")
            self._tasks.spawn(self._stop(started=time.monotonic()), "shutdown")

    async def _stop(self, *, started: float) -> None:
        kernel, channels = self._place.living, self._place.channels
        if kernel is not None:
            try:
                if channels is not None:
                    await channels.ask(kind="shutdown_request", content={"restart": False})
                else:
                    kernel.signal(signal.SIGTERM)  # nobody's kernel: there is nothing to save
            except asyncio.TimeoutError:
                log.warning("The kernel's control channel takes no message")
            terminated = False
            while kernel.alive and self._stop_by is not None and time.monotonic() < self._stop_by:
                if not terminated and time.monotonic() >= started + (self._stop_by - started) / 2:
                    kernel.signal(signal.SIGTERM)
                    terminated = True
                await asyncio.wait({kernel.exited}, timeout=0.02)
            await kernel.kill()
        self._end(EXIT_ASKED)

    # What a gateway asks for

    async def promote(self, promotion: Promotion) -> dict[str, Any]:
        """Give the member its identity, once. Raises RequestError."""
        try:
            return await self._claiming.promote(promotion)
        finally:
            self._wanted_at = time.monotonic()

    async def restart(self) -> dict[str, Any]:
        """Restart in place; joins a restart that is under way. Raises RequestError."""
        self._check_not_stopping()
        if not self._place.claimed:
            raise RequestError(409, "not_claimed", "This member has not been claimed")
        if self._restarting is None or self._restarting.done():
            self._restarting = self._tasks.spawn(self._restart(), "restart")
        return await asyncio.shield(self._restarting)

    async def _restart(self) -> dict[str, Any]:
        started = time.perf_counter()
        place, status = self._place, self.status
        async with place.lock:
            idle = status.kernel_state == "idle"
            status.set_kernel_state("restarting")
            await place.stop(ask=True, busy=not idle)
            stopped = time.perf_counter()
            try:
                await place.restart()
            except KernelStartError as error:
                raise kernel_error(status, error) from error
            status.message = None
            if status.state == "failed":
                place.forgive()
                status.set_state("claimed")
        bound = time.perf_counter()
        place.prepare_spare()
        return {
            "kernel_generation": status.generation,
            "connection": place.connection(),
            "started_by": status.started_by,
            "phases": {"stopped": stopped - started, "bound": bound - stopped, "total": bound - started},
        }

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs. Raises RequestError."""
        kernel = self._living_kernel()
        if self.config.kernel.interrupt_mode == "signal":
            kernel.signal(signal.SIGINT)
            return
        channels = self._place.channels or self._place.open_channels()
        try:
            await channels.ask(kind="interrupt_request", content={})
        except asyncio.TimeoutError:
            raise RequestError(504, "kernel_timeout", "The kernel's control channel takes no message") from None

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group. Raises RequestError."""
        self._living_kernel().signal(signum)

    def usage(self, *, thorough: bool) -> Usage:
        """Of the kernel's process tree."""
        kernel = self._place.living
        return measure(kernel.pid if kernel is not None else None, thorough=thorough)

    def connection_answer(self) -> dict[str, Any]:
        """The answer to `GET /v1/connection`. Raises RequestError."""
        if self.status.generation == 0:
            raise RequestError(409, "not_ready", "There is no kernel yet")
        return {
            "boot_id": self.boot_id,
            "kernel_generation": self.status.generation,
            "connection": self._place.connection(),
            "claim": self._claiming.claim,
        }

    def beat(self) -> Beat:
        """How things are now."""
        status, promotion, usage = self.status, self._claiming.promotion, self.usage(thorough=False)
        return Beat(
            name=self.config.name,
            boot_id=self.boot_id,
            state=status.state,
            message=status.message,
            kernel_state=status.kernel_state,
            kernel_generation=status.generation,
            kernel_started_by=status.started_by,
            notice=status.notice,
            idle_seconds=status.idle_seconds,
            cpu_seconds=usage.cpu_seconds,
            resident_bytes=usage.resident_bytes,
            restarts=status.restarts,
            claim_id=promotion.claim_id if promotion else None,
            kernel_id=promotion.kernel_id if promotion else None,
            exit=status.exit,
        )

    def _living_kernel(self) -> KernelProcess:
        self._check_not_stopping()
        kernel = self._place.living
        if kernel is None:
            raise RequestError(409, "no_kernel", "There is no kernel running")
        return kernel

    def _check_not_stopping(self) -> None:
        if self.status.state == "stopping":
            raise RequestError(409, "stopping", "This member is ending")
