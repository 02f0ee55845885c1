"""What our process proxies share with Enterprise Gateway's contract: synchronous questions are answered from memory, and
orders become owned background tasks.

A proxy here is an adapter between one kernel manager (jupyter_client's idea of a kernel) and one `ClaimedKernel` (the
pool's). It holds no logic of launching. It works in stock Enterprise Gateway, whose kernel manager restarts a kernel by
ending one proxy and making another: then the claimed kernel is handed from the old proxy to the new one and restarted in
place, with the ports and the key that open channels use. It does not derive from RemoteProcessProxy, so EG's response port is
never opened for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from typing import Any

from enterprise_gateway.services.processproxies.processproxy import BaseProcessProxyABC

from eg_knative.errors import BadRequestError, EgKnativeError, LauncherError, LauncherUnreachableError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.processproxies.authorization import require_authorized
from eg_knative.processproxies.http import http_error
from eg_knative.tasks import OwnedTasks
from eg_knative.wire.control import ConnectionInfo

GRACE_SECONDS = 5.0
"""How long a kernel that is asked to end may take; jupyter_client's `shutdown_wait_time`."""

RESTART_TIMEOUT = 60.0
"""Seconds for a restart in place, when the kernel manager knows no launch timeout."""

HANDED_OVER = "_egknative_claimed"
"""Attribute of the kernel manager where a proxy leaves its claimed kernel for the one that follows it in a restart."""

_log = logging.getLogger(__name__)
background = OwnedTasks(log=_log)
"""The orders of all proxies of this process. Who ends the process awaits `background.close()`."""


def apply_connection(kernel_manager: Any, connection: ConnectionInfo) -> None:
    """Point a kernel manager at a kernel. The key goes to its session and nowhere else."""
    kernel_manager.transport = connection.transport
    kernel_manager.ip = connection.ip
    for name in ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"):
        setattr(kernel_manager, name, getattr(connection, name))
    session = kernel_manager.session
    session.signature_scheme = connection.signature_scheme
    session.key = connection.key.encode()


def launch_timeout_of(env: Mapping[str, str], *, default: float) -> float:
    """KERNEL_LAUNCH_TIMEOUT of a request in seconds, else `default`. Raises BadRequestError."""
    text = env.get("KERNEL_LAUNCH_TIMEOUT")
    if text is None or not text.strip():
        return default
    try:
        seconds = float(text)
    except ValueError as error:
        raise BadRequestError(
            "KERNEL_LAUNCH_TIMEOUT is not a number of seconds. Send digits only, such as 40.", field="env.KERNEL_LAUNCH_TIMEOUT"
        ) from error
    if not 0 < seconds <= 86_400:
        raise BadRequestError(
            "KERNEL_LAUNCH_TIMEOUT is not between 0 and 86400 seconds. Correct or omit it.", field="env.KERNEL_LAUNCH_TIMEOUT"
        )
    return seconds


class ClaimProxy(BaseProcessProxyABC):  # type: ignore[misc]  # EG has no types
    """A process proxy in front of a claimed kernel. Subclasses say how to claim one (`claim`)."""

    def __init__(self, kernel_manager: Any, proxy_config: dict[str, Any] | None) -> None:
        super().__init__(kernel_manager, proxy_config or {})
        # EG picks five ports and writes a connection file for kernels without a response address; ours come with both.
        kernel_manager.response_address = "pooled"
        self.claimed: ClaimedKernel | None = None
        self._exit: int | None = None

    async def claim(self, env: dict[str, str], *, working_directory: str | None) -> ClaimedKernel:
        """Get a kernel of one's own. Raises EgKnativeError with nothing left behind."""
        raise NotImplementedError

    async def launch_process(self, kernel_cmd: Any, **kwargs: Any) -> ClaimProxy:
        """EG's entry: claim a kernel, or restart in place the one that the proxy before this one handed over.

        Raises tornado's HTTPError with a reason word and a message that its user can act on.
        """
        try:
            handed_over: ClaimedKernel | None = self.kernel_manager.__dict__.pop(HANDED_OVER, None)
            if handed_over is None or not await self._restarted(handed_over):
                env = stock_environment(self.kernel_manager)
                self.take(await self.claim(env, working_directory=kwargs.get("cwd")))
        except EgKnativeError as error:
            raise http_error(error) from error
        return self

    async def _restarted(self, claimed: ClaimedKernel) -> bool:
        """Restart in place. False: its launcher is gone, and what was left of it is removed."""
        try:
            await claimed.restart(float(getattr(self.kernel_manager, "kernel_launch_timeout", RESTART_TIMEOUT)))
        except LauncherUnreachableError as error:
            self.log.warning("Kernel %s gets a new member: %s", self.kernel_id, error.message)
            await claimed.shutdown(0.0)
            return False
        self.take(claimed)
        return True

    def take(self, claimed: ClaimedKernel) -> None:
        """Make `claimed` this proxy's kernel, and point the kernel manager at it."""
        self.claimed = claimed
        self._exit = None
        self.ip = claimed.connection.ip
        apply_connection(self.kernel_manager, claimed.connection)

    def authorize(self, username: str) -> None:
        """Raises NotAllowedError, by EG's rules."""
        require_authorized(
            username,
            kernelspec=self.kernel_manager.kernel_name,
            config=self.proxy_config,
            authorized=self.kernel_manager.authorized_users,
            unauthorized=self.kernel_manager.unauthorized_users,
        )

    def identity(self, env: dict[str, str], *, username: str) -> dict[str, str]:
        """`env` and the variables by which EG tells a kernel who it is; the gateway's own token never goes along."""
        language = str(self.kernel_manager.kernel_spec.language).lower() or "unknown-kernel-language"
        complete = {"KERNEL_LANGUAGE": language, **env}
        complete.update(
            KERNEL_ID=self.kernel_id,
            KERNEL_USERNAME=username,
            KERNEL_GATEWAY="1",
            EG_IMPERSONATION_ENABLED=str(self.kernel_manager.impersonation_enabled),
        )
        for secret in ("EG_AUTH_TOKEN", "KG_AUTH_TOKEN"):
            complete.pop(secret, None)
        return complete

    def poll(self) -> int | None:
        """None while the kernel lives or is being restarted by its launcher, else an exit code. Reads memory."""
        if self._exit is not None:
            return self._exit
        claimed = self.claimed
        if claimed is None or not claimed.alive:
            return -1
        return None

    def wait(self) -> int | None:
        """jupyter_client calls this on the event loop after the end of the kernel: nothing is left to wait for."""
        return self.poll()

    def send_signal(self, signum: int) -> bool | None:
        """Send a signal in the background. EG's convention: None, or False when there is no kernel.

        SIGKILL and SIGTERM mean that the kernel shall end, so they end the member with it; otherwise the launcher would
        rightly restart a kernel that was killed. In a restart they do nothing: the restart in place replaces the process.
        """
        if self.poll() is not None or self.claimed is None:
            return False
        if signum == 0:
            return None
        if signum in (signal.SIGKILL, signal.SIGTERM):
            return self._end(grace_seconds=0.0 if signum == signal.SIGKILL else GRACE_SECONDS)
        order = self.claimed.interrupt() if signum == signal.SIGINT else self.claimed.signal(signum)
        background.own(_lenient(order), name=f"signal {signum} to kernel {self.kernel_id}")
        return None

    def kill(self) -> bool | None:
        """End the kernel now, in the background."""
        return self._end(grace_seconds=0.0)

    def terminate(self) -> bool | None:
        """End the kernel with grace, in the background."""
        return self._end(grace_seconds=GRACE_SECONDS)

    def cleanup(self) -> None:
        """The kernel manager is done with this proxy: the member goes, unless a restart will need it."""
        claimed, self.claimed = self.claimed, None
        self._exit = -1 if self._exit is None else self._exit
        if claimed is None:
            return
        if self._restarting:
            self.kernel_manager.__dict__[HANDED_OVER] = claimed
        else:
            background.own(claimed.shutdown(0.0), name=f"end of kernel {self.kernel_id}")

    def get_process_info(self) -> dict[str, Any]:
        """What EG's session persistence keeps of a kernel. Ours is found again by its id, in the substrate's own records."""
        return {"pid": 0, "pgid": 0, "ip": self.ip, "kernel_id": self.kernel_id}

    def load_process_info(self, process_info: dict[str, Any]) -> None:
        """EG found a persisted session; the event loop does not run yet. The kernel is adopted as soon as it does."""
        self.ip = process_info["ip"]
        self.kernel_manager.ip = process_info["ip"]
        self._exit = None
        background.own(self._adopt(), name=f"adoption of kernel {self.kernel_id}")

    async def adopted(self) -> ClaimedKernel | None:
        """The living kernel with our id that an earlier gateway claimed, if there is one."""
        raise NotImplementedError

    async def _adopt(self) -> None:
        claimed = await self.adopted()
        if claimed is None:
            self._exit = -1
            self.log.warning("Kernel %s of an earlier gateway is gone.", self.kernel_id)
        else:
            self.take(claimed)

    @property
    def _restarting(self) -> bool:
        return bool(getattr(self.kernel_manager, "restarting", False))

    def _end(self, *, grace_seconds: float) -> bool | None:
        if self.claimed is None:
            return False
        if self._restarting:
            self._exit = -1  # what jupyter_client waits for before it starts the new one
            return None
        background.own(self.claimed.shutdown(grace_seconds), name=f"end of kernel {self.kernel_id}")
        return None


def stock_environment(kernel_manager: Any) -> dict[str, str]:
    """The kernel's environment when nobody on the floor above has made one: what the operator lets kernels inherit, then what
    the request was allowed to set. EG itself would pass on the gateway's whole environment when the request has none."""
    inherited = {name: os.environ[name] for name in kernel_manager.inherited_envs if name and name in os.environ}
    return {**inherited, **kernel_manager.user_overrides}


async def _lenient(order: Any) -> None:
    """A signal to a kernel that has just ended is no fault."""
    try:
        await order
    except LauncherError as error:
        _log.info("A signal was not delivered: %s", error.message)
    except asyncio.CancelledError:
        raise
