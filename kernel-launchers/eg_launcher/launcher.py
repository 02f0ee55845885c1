"""The state machine of one member: boot, promotion, restarts by request or by themselves, end.

Everything that starts or ends a kernel process goes through one lock; shutdown goes past it, because ending must always work.
The HTTP is `app`'s, the process's life `__main__`'s. It does not decide whether a kernel is wanted, only for how long it waits to
be asked.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import secrets
import signal
import time
from typing import Any

from eg_launcher import identity as identities
from eg_launcher.config import Config
from eg_launcher.errors import KernelStartError, LauncherError, RequestError, ZygoteError
from eg_launcher.identity import Identity
from eg_launcher.kernel import KernelProcess, KernelStarter
from eg_launcher.messages import KernelChannels, close_context
from eg_launcher.ports import PortReservation
from eg_launcher.protocol import Beat, Promotion, check_directory
from eg_launcher.reaper import Reaper
from eg_launcher.spare import Spare
from eg_launcher.usage import Usage, descendants, measure
from eg_launcher.zygote_client import Zygote, interpreter_of

log = logging.getLogger("eg_launcher")

_RESTART_WINDOW_SECONDS = 60.0
# Long enough for quick atexit handlers, short enough that nobody waits for libzmq's farewells.
_GRACEFUL_SECONDS = 0.03
_FAILED_LINGER_SECONDS = 10.0
EXIT_ASKED, EXIT_CONFIGURATION, EXIT_KERNEL, EXIT_INTERNAL = 0, 2, 3, 4


class Launcher:
    """One member. Make it on the event loop; `run` until it returns the exit code."""

    def __init__(self, config: Config, *, zygote_socket: Any = None) -> None:
        self.config = config
        self.boot_id = secrets.token_hex(16)
        self.state = "starting"
        self.message: str | None = None
        self.listeners: set[asyncio.Event] = set()
        self._reservation = PortReservation(ip=config.ip, wanted=config.ports)
        self._reaper = Reaper()
        self._starter = KernelStarter(config=config, ports=self._reservation.ports, reaper=self._reaper)
        self._spare = Spare(starter=self._starter, timeout_seconds=config.kernel.start_timeout_seconds, on_failure=self._notice)
        self._zygote_socket = zygote_socket
        self._lock = asyncio.Lock()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._kernel: KernelProcess | None = None
        self._channels: KernelChannels | None = None
        self._identity = self._pool_identity()
        self._kernel_state = "absent"
        self._state_since = time.monotonic()
        self._generation = 0
        self._started_by: str | None = None
        self._last_notice: str | None = None
        self._restarts: collections.deque[float] = collections.deque(maxlen=1000)
        self._restart_count = 0
        self._exit: dict[str, Any] | None = None
        self._promotion: Promotion | None = None
        self._claim: dict[str, Any] | None = None
        self._claiming: asyncio.Task[dict[str, Any]] | None = None
        self._restarting: asyncio.Task[dict[str, Any]] | None = None
        self._stop_by: float | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._watched_at = time.monotonic()

    # Life

    async def run(self) -> int:
        """Boot, serve until the end, leave nothing behind; returns the process's exit code."""
        os.makedirs(self.config.connection_directory, mode=0o700, exist_ok=True)
        self._reaper.start()
        self._spawn(self._boot(), "boot")
        self._spawn(self._give_up_when_unwanted(), "timeouts")
        try:
            return await self._ended
        finally:
            await self._clean_up()

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """A background task whose failure ends the launcher rather than going unheard."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None or isinstance(task.exception(), LauncherError):
            return
        log.error("The task %r failed", task.get_name(), exc_info=task.exception())
        self._fail("The launcher itself failed; its log says more")
        self._end(EXIT_INTERNAL)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    async def _clean_up(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._spare.discard()
        await self._close_channels()
        if self._kernel is not None and self._kernel.alive:
            await self._kernel.kill()
        if self._starter.zygote is not None:
            await self._starter.zygote.close(timeout_seconds=1.0)
        self._kill_descendants()
        identities.remove(self._identity.connection_file)
        self._reservation.release()
        self._reaper.stop()
        close_context()

    def _kill_descendants(self) -> None:
        """What a user's code left running elsewhere than in the kernel's group became ours when its parent ended."""
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    async def _give_up_when_unwanted(self) -> None:
        while True:
            claimed = self._promotion is not None
            limit = self.config.abandoned_timeout_seconds if claimed else self.config.unclaimed_timeout_seconds
            if self.state == "failed" and not claimed:
                limit = min(limit, _FAILED_LINGER_SECONDS)
            if self.listeners and self.state != "failed":
                self._watched_at = time.monotonic()
            left = self._watched_at + limit - time.monotonic()
            if left <= 0:
                log.info("Nobody has asked for this member for %g s; ending", limit)
                if self.state == "failed" and not claimed:
                    self._end(EXIT_KERNEL)
                    return
                self.shutdown(grace_seconds=2.0)
                return
            await asyncio.sleep(min(left, max(0.05, limit / 20), 5.0))

    # Boot

    def _pool_identity(self) -> Identity:
        kernel = self.config.kernel
        directory = self.config.connection_directory
        return Identity(
            kernel_id="",
            kernel_name=kernel.kernel_name,
            username="",
            env=kernel.env,
            working_directory=kernel.working_directory or directory,
            key=identities.new_key(),
            connection_file=os.path.join(directory, f"kernel-{self.boot_id}.json"),
        )

    @property
    def _boots_early(self) -> bool:
        start = self.config.kernel.start
        return start == "boot" or (start == "auto" and self._starter.is_ipykernel)

    async def _boot(self) -> None:
        try:
            if self._boots_early:
                self._starter.check_program(self._identity)
            zygote_notice = await self._start_zygote()
            if self._boots_early:
                async with self._lock:
                    if self._promotion is None:
                        await self._start_kernel(final=False, notice=zygote_notice)
            else:
                self._last_notice = zygote_notice
        except KernelStartError as error:
            self._record_exit(error.exit, restarted=False)
            self._fail(str(error))
            return
        if self.state == "starting":
            self._set_state("ready")

    async def _start_zygote(self) -> str | None:
        kernel = self.config.kernel
        parts = interpreter_of(kernel.argv)
        if parts is None or not kernel.zygote:
            if self._zygote_socket is not None:
                self._zygote_socket.close()
            return None
        try:
            if self._zygote_socket is not None:
                self._starter.zygote = await Zygote.adopt(self._zygote_socket, on_death=self._zygote_died)
            else:
                self._starter.zygote = await Zygote.start(
                    python=parts[0],
                    env=kernel.env,
                    cwd=kernel.working_directory or self.config.connection_directory,
                    pre_import=kernel.pre_import,
                    log_fd=2,
                    on_death=self._zygote_died,
                    timeout_seconds=kernel.start_timeout_seconds,
                )
        except ZygoteError as error:
            return f"No zygote: {error}"
        notices = self._starter.zygote.notices
        return "; ".join(notices) or None

    def _zygote_died(self, why: str) -> None:
        zygote, self._starter.zygote = self._starter.zygote, None
        self._notice(f"The zygote is gone: {why}; kernels are started without it")
        if zygote is not None:
            self._spawn(zygote.close(), "close the zygote")

    # The kernel process

    async def _start_kernel(self, *, final: bool, notice: str | None = None, spare: KernelProcess | None = None) -> None:
        """Start or activate a kernel for the present identity, as the next generation. Raises KernelStartError."""
        info = self._connection()
        identities.write_connection_file(path=self._identity.connection_file, info=info)
        self._set_kernel_state("restarting" if self._generation else "starting")
        deadline = time.monotonic() + self.config.kernel.start_timeout_seconds
        notices = [notice] if notice else []
        kernel: KernelProcess | None = None
        if spare is not None:
            try:
                await self._starter.activate(spare, deadline=min(deadline, time.monotonic() + 5.0))
                kernel, started_by = spare, "spare"
            except KernelStartError as error:
                notices.append(f"The spare could not be used: {error}")
                await spare.kill()
                self._kill_strays()
        if kernel is None:
            kernel, more = await self._starter.start(identity=self._identity, bind=True, final=final, deadline=deadline)
            notices += more
            started_by = kernel.started_by
        self._kernel = kernel
        self._generation += 1
        self._started_by = started_by
        self._last_notice = "; ".join(notices) or None
        if self._promotion is not None:
            self._open_channels()
        self._set_kernel_state("idle")
        self._spawn(self._watch(kernel, self._generation), f"watch kernel {self._generation}")

    def _kill_strays(self) -> None:
        """Processes that outlived a kernel may hold its ports; they are ours, by adoption."""
        zygote = self._starter.zygote
        keep = {zygote.pid} if zygote is not None else set()
        for pid in descendants(os.getpid()):
            if pid not in keep and (self._kernel is None or pid != self._kernel.pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    async def _stop_kernel(self) -> None:
        """End the present kernel as a restart does: it is asked, and killed if it has not gone at once. Holds the lock."""
        kernel, self._kernel = self._kernel, None
        if kernel is None:
            return
        channels = self._channels
        if channels is not None and self._kernel_state == "idle" and kernel.alive:
            try:
                await channels.ask(kind="shutdown_request", content={"restart": True})
                await asyncio.wait_for(asyncio.shield(kernel.exited), _GRACEFUL_SECONDS)
            except asyncio.TimeoutError:
                pass
        await kernel.kill()
        await self._close_channels()

    async def _watch(self, kernel: KernelProcess, generation: int) -> None:
        """Wait for the end of a kernel, and if nobody asked for it, say why and restart it as the policy says."""
        await asyncio.shield(kernel.exited)
        if self._kernel is not kernel or self.state in ("stopping", "failed"):
            return
        ended = kernel.how_it_ended()
        policy = self.config.kernel.auto_restart
        restart = policy == "always" or (policy == "on_failure" and ended["code"] != 0)
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - _RESTART_WINDOW_SECONDS:
            self._restarts.popleft()
        exceeded = restart and len(self._restarts) >= self.config.kernel.restart_limit
        restart = restart and not exceeded
        log.warning("Kernel %d ended unasked: %s", generation, ended["reason"])
        self._record_exit(ended, restarted=restart)
        self._kernel_state = "dead"
        kernel.signal(signal.SIGKILL)
        kernel.release()
        if exceeded:
            limit = self.config.kernel.restart_limit
            self._fail(f"The kernel ended {limit + 1} times within {_RESTART_WINDOW_SECONDS:g} s. {ended['message']}")
        self._changed()
        if restart:
            self._restarts.append(now)
            async with self._lock:
                if self._kernel is kernel and self.state not in ("stopping", "failed"):
                    await self._restart_by_itself()

    async def _restart_by_itself(self) -> None:
        self._kernel = None
        await self._close_channels()
        try:
            await self._start_kernel(final=self._promotion is not None, spare=await self._spare.take())
            self._restart_count += 1
        except KernelStartError as error:
            self._record_exit(error.exit, restarted=False)
            self._set_kernel_state("dead")
            self._fail(f"The kernel could not be restarted: {error}")
            return
        self._prepare_spare()

    def _record_exit(self, ended: dict[str, Any], *, restarted: bool) -> None:
        self._exit = {"generation": self._generation, **ended, "restarted": restarted}

    def _prepare_spare(self) -> None:
        if self.config.kernel.spare and self._promotion is not None and self.state == "claimed":
            self._spare.prepare(self._identity)

    def _open_channels(self) -> KernelChannels:
        _, iopub, _, control, _ = self._reservation.ports
        self._channels = KernelChannels(
            ip=self.config.ip,
            iopub_port=iopub,
            control_port=control,
            key=self._identity.key,
            python=self._starter.is_ipykernel,
            on_state=self._on_status,
        )
        return self._channels

    async def _close_channels(self) -> None:
        channels, self._channels = self._channels, None
        if channels is not None:
            await channels.close()

    def _on_status(self, state: str) -> None:
        if state != "starting" and self._kernel is not None and self._kernel.alive and state != self._kernel_state:
            self._set_kernel_state(state)

    # Promotion

    async def promote(self, promotion: Promotion) -> dict[str, Any]:
        """Give the member its identity, once. Raises RequestError."""
        if self._promotion is not None:
            if self._promotion.claim_id != promotion.claim_id or self._claiming is None:
                raise RequestError(409, "already_claimed", "This member has been claimed")
            return await asyncio.shield(self._claiming)
        if self.state == "stopping":
            raise RequestError(409, "stopping", "This member is ending")
        if self.state != "ready":
            raise RequestError(409, "not_ready", f"This member is {self.state}")
        if promotion.working_directory is not None:
            check_directory(promotion.working_directory)
        # From here to the end of this method nothing waits before the claim is decided.
        self._promotion = promotion
        self._claim = promotion.as_claim(claimed_at=time.time())
        self._watched_at = time.monotonic()
        self._set_state("claimed")
        self._claiming = self._spawn(self._take_identity(promotion), "promotion")
        return await asyncio.shield(self._claiming)

    async def _take_identity(self, promotion: Promotion) -> dict[str, Any]:
        started = time.perf_counter()
        phases: dict[str, float] = {}
        async with self._lock:
            old = self._identity
            self._identity = self._promoted_identity(promotion)
            notice = self._why_fresh(promotion)
            running = False
            try:
                if notice is None and self._kernel is not None:
                    identities.write_connection_file(path=self._identity.connection_file, info=self._connection())
                    phases["file"] = time.perf_counter() - started
                    self._open_channels()  # in libzmq's threads, beside the promotion: the first cell's status is not missed
                    phases["channels"] = time.perf_counter() - started
                    try:
                        phases["inside"] = await self._kernel.promote(self._identity, argv=self.config.kernel.argv)
                        running = True
                    except KernelStartError as error:
                        notice = f"The running kernel did not take the identity: {error}"
                if not running:
                    if self._kernel is not None:
                        await self._stop_kernel()
                    phases["stopped"] = time.perf_counter() - started
                    await self._start_kernel(final=True, notice=notice)
            except KernelStartError as error:
                self._record_exit(error.exit, restarted=False)
                self._set_kernel_state("dead")
                self._fail(str(error))
                status, reason = (504, "kernel_timeout") if error.timed_out else (500, "kernel_failed")
                raise RequestError(status, reason, str(error), exit=self._exit) from error
            finally:
                if old.connection_file != self._identity.connection_file:
                    identities.remove(old.connection_file)
        phases["total"] = time.perf_counter() - started
        self._changed()
        self._prepare_spare()
        return {
            "boot_id": self.boot_id,
            "claim_id": promotion.claim_id,
            "kernel_generation": self._generation,
            "connection": self._connection(),
            "started": "running" if running else "fresh",
            "notice": None if running else notice,
            "phases": phases,
        }

    def _promoted_identity(self, promotion: Promotion) -> Identity:
        kernel = self.config.kernel
        directory = self.config.connection_directory
        return Identity(
            kernel_id=promotion.kernel_id,
            kernel_name=promotion.kernel_name or kernel.kernel_name,
            username=promotion.username,
            env={**kernel.env, **promotion.env},
            working_directory=promotion.working_directory or kernel.working_directory or directory,
            key=identities.new_key(),
            connection_file=os.path.join(directory, f"kernel-{promotion.kernel_id}.json"),
        )

    def _why_fresh(self, promotion: Promotion) -> str | None:
        """Why the running kernel cannot take this identity; None if it can, or if there is none."""
        if self._kernel is None:
            return None
        kernel = self.config.kernel
        for name in sorted(kernel.import_time_variables & set(promotion.env)):
            if promotion.env[name] != kernel.env.get(name):
                return f"{name} is read when a library is imported, so a fresh process was started with it"
        if not self._kernel.alive:
            return "The kernel that was running had ended"
        if not self._kernel.promotable:
            return "This kernel cannot be promoted while it runs, so a fresh process was started"
        return None

    # What a gateway asks for

    async def restart(self) -> dict[str, Any]:
        """Restart in place; joins a restart that is under way. Raises RequestError."""
        self._check_claimed()
        if self._restarting is None or self._restarting.done():
            self._restarting = self._spawn(self._restart(), "restart")
        return await asyncio.shield(self._restarting)

    async def _restart(self) -> dict[str, Any]:
        started = time.perf_counter()
        phases: dict[str, float] = {}
        async with self._lock:
            state, self._kernel_state = self._kernel_state, "restarting"
            self._changed()
            self._kernel_state = state  # `_stop_kernel` asks an idle kernel and kills a busy one
            await self._stop_kernel()
            phases["stopped"] = time.perf_counter() - started
            spare = await self._spare.take()
            phases["spare"] = time.perf_counter() - started - phases["stopped"]
            try:
                await self._start_kernel(final=True, spare=spare)
            except KernelStartError as error:
                self._record_exit(error.exit, restarted=False)
                self._set_kernel_state("dead")
                self._fail(str(error))
                status, reason = (504, "kernel_timeout") if error.timed_out else (500, "kernel_failed")
                raise RequestError(status, reason, str(error), exit=self._exit) from error
            self._restart_count += 1
            self.message = None
            if self.state == "failed":
                self._restarts.clear()
                self._set_state("claimed")
        phases["total"] = time.perf_counter() - started
        phases["bound"] = phases["total"] - phases["stopped"] - phases["spare"]
        self._prepare_spare()
        return {
            "kernel_generation": self._generation,
            "connection": self._connection(),
            "started_by": self._started_by,
            "phases": phases,
        }

    async def interrupt(self) -> None:
        """Interrupt what the kernel runs. Raises RequestError."""
        kernel = self._living_kernel()
        if self.config.kernel.interrupt_mode == "message":
            channels = self._channels or self._open_channels()
            try:
                await channels.ask(kind="interrupt_request", content={})
            except asyncio.TimeoutError:
                raise RequestError(504, "kernel_timeout", "The kernel's control channel takes no message") from None
        else:
            kernel.signal(signal.SIGINT)

    def signal(self, signum: int) -> None:
        """Signal the kernel's process group. Raises RequestError."""
        self._living_kernel().signal(signum)

    def shutdown(self, *, grace_seconds: float) -> None:
        """Begin to end, or end sooner; returns at once."""
        by = time.monotonic() + grace_seconds
        self._stop_by = by if self._stop_by is None else min(by, self._stop_by)
        if self._stopping is None:
            self._set_state("stopping")
            self._stopping = self._spawn(self._stop(started=time.monotonic()), "shutdown")

    async def _stop(self, *, started: float) -> None:
        kernel = self._kernel
        if kernel is not None and kernel.alive:
            if self._channels is not None or self._promotion is None:
                try:
                    if self._channels is not None:
                        await self._channels.ask(kind="shutdown_request", content={"restart": False})
                    else:
                        kernel.signal(signal.SIGTERM)  # nobody's kernel: nothing to save
                except asyncio.TimeoutError:
                    pass
            terminated = False
            while kernel.alive and self._stop_by is not None and time.monotonic() < self._stop_by:
                if not terminated and time.monotonic() >= started + (self._stop_by - started) / 2:
                    kernel.signal(signal.SIGTERM)
                    terminated = True
                await asyncio.wait({kernel.exited}, timeout=0.02)
            await kernel.kill()
        self._end(EXIT_ASKED)

    def usage(self, *, thorough: bool) -> Usage:
        """Of the kernel's process tree."""
        kernel = self._kernel
        return measure(kernel.pid if kernel is not None and kernel.alive else None, thorough=thorough)

    def connection_answer(self) -> dict[str, Any]:
        """The answer to `GET /v1/connection`. Raises RequestError."""
        if self._kernel is None and self._generation == 0:
            raise RequestError(409, "not_ready", "There is no kernel yet")
        return {
            "boot_id": self.boot_id,
            "kernel_generation": self._generation,
            "connection": self._connection(),
            "claim": self._claim,
        }

    def beat(self) -> Beat:
        """How things are now."""
        usage = self.usage(thorough=False)
        return Beat(
            name=self.config.name,
            boot_id=self.boot_id,
            state=self.state,
            message=self.message,
            kernel_state=self._kernel_state,
            kernel_generation=self._generation,
            kernel_started_by=self._started_by,
            notice=self._last_notice,
            idle_seconds=0.0 if self._kernel_state == "busy" else round(time.monotonic() - self._state_since, 3),
            cpu_seconds=usage.cpu_seconds,
            resident_bytes=usage.resident_bytes,
            restarts=self._restart_count,
            claim_id=self._promotion.claim_id if self._promotion else None,
            kernel_id=self._promotion.kernel_id if self._promotion else None,
            exit=self._exit,
        )

    # Small things

    def _living_kernel(self) -> KernelProcess:
        if self.state == "stopping":
            raise RequestError(409, "stopping", "This member is ending")
        if self._kernel is None or not self._kernel.alive:
            raise RequestError(409, "no_kernel", "There is no kernel running")
        return self._kernel

    def _check_claimed(self) -> None:
        if self.state == "stopping":
            raise RequestError(409, "stopping", "This member is ending")
        if self._promotion is None:
            raise RequestError(409, "not_claimed", "This member has not been claimed")

    def _connection(self) -> dict[str, Any]:
        return identities.connection_info(identity=self._identity, ip=self.config.ip, ports=self._reservation.ports)

    def _notice(self, notice: str) -> None:
        self._last_notice = notice
        log.warning("%s", notice)
        self._changed()

    def _fail(self, message: str) -> None:
        self.message = message
        self._watched_at = time.monotonic()
        log.error("%s", message)
        if self.state != "stopping":
            self._set_state("failed")

    def _set_state(self, state: str) -> None:
        self.state = state
        self._changed()

    def _set_kernel_state(self, state: str) -> None:
        self._kernel_state = state
        self._state_since = time.monotonic()
        self._changed()

    def _changed(self) -> None:
        for listener in self.listeners:
            listener.set()
