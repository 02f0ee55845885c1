"""The kernel manager of one kernel that a pool gave us: jupyter_client's interface over a `ClaimedKernel`.

It starts no process, writes no connection file, picks no ports, watches nothing by polling and opens no socket: the claim
brings all that. Its launcher restarts the kernel in place, so jupyter_client's restarter is never started. State and activity
come from the launcher's beats and, while somebody is connected, from the relay.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any

from enterprise_gateway.services.kernels.remotemanager import RemoteKernelManager

from eg_knative.errors import LaunchError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import KernelEvent
from eg_knative.processproxies.base import ClaimProxy, apply_connection, launch_timeout_of
from eg_knative.specification import KernelSpecification

log = logging.getLogger(__name__)


def utc_now() -> datetime.datetime:
    """Now, aware of its time zone, as jupyter_server's culler needs it."""
    return datetime.datetime.now(datetime.timezone.utc)


class WarmKernelManager(RemoteKernelManager):  # type: ignore[misc]  # EG has no types
    """One kernel of ours. `claimed` is None before it is started and after it is shut down."""

    specification: KernelSpecification | None = None
    username: str = ""
    execution_state: str = "starting"
    reason: str = ""
    default_launch_timeout: float = 40.0
    kernel: ClaimProxy | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last_activity = utc_now()
        self._stop_hearing: Callable[[], None] | None = None
        self.process_proxy: ClaimProxy | None = None

    @property
    def claimed(self) -> ClaimedKernel | None:
        """The pool's kernel behind this manager."""
        return self.process_proxy.claimed if self.process_proxy is not None else None

    async def start(self, proxy: ClaimProxy, *, env: Mapping[str, str], working_directory: str | None) -> None:
        """Claim a kernel through `proxy`. Raises EgKnativeError with nothing left behind."""
        self.kernel_launch_timeout = launch_timeout_of(env, default=self.default_launch_timeout)
        self.adopt(proxy, await proxy.claim(dict(env), working_directory=working_directory))

    def adopt(self, proxy: ClaimProxy, claimed: ClaimedKernel) -> None:
        """Become the manager of a kernel that is claimed already."""
        proxy.take(claimed)
        self.process_proxy = proxy
        self.kernel = proxy
        self._launch_args: dict[str, Any] = {}
        self.username = claimed.claim.username
        beat = claimed.latest_beat
        self.execution_state = beat.kernel_state if beat is not None and beat.kernel_state in {"idle", "busy"} else "idle"
        self.last_activity = utc_now()
        self._stop_hearing = claimed.add_listener(self.hear)

    async def start_kernel(self, **kwargs: Any) -> None:
        """jupyter_client's entry; the mapping manager uses `start`."""
        raise NotImplementedError("A warm kernel is started by its mapping manager.")

    async def restart_kernel(self, now: bool = False, **kwargs: Any) -> None:
        """In place: same ports, key, environment, and the same open WebSockets. Raises EgKnativeError."""
        claimed = self._require()
        self.restarting = True
        try:
            apply_connection(self, await claimed.restart(self.kernel_launch_timeout))
        finally:
            self.restarting = False

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """End the kernel and its member; no error when it is gone."""
        claimed = self.claimed
        self.shutting_down = True
        if claimed is not None:
            await claimed.shutdown(0.0 if now else self.shutdown_wait_time)
        self.forget()

    async def interrupt_kernel(self) -> None:
        """By the launcher, in the way that the kernelspec names."""
        await self._require().interrupt()

    async def signal_kernel(self, signum: int) -> None:
        """To the kernel's process group, by the launcher."""
        await self._require().signal(int(signum))

    async def is_alive(self) -> bool:
        """From memory."""
        return self.process_proxy is not None and self.process_proxy.poll() is None

    def start_restarter(self) -> None:
        """The launcher restarts kernels."""

    def forget(self) -> None:
        """Drop what this manager holds; the member's fate is decided elsewhere."""
        if self._stop_hearing is not None:
            self._stop_hearing()
            self._stop_hearing = None
        if self.process_proxy is not None:
            self.process_proxy.claimed = None
        self.kernel = None
        self._close_control_socket()
        for link in self.__dict__.pop("_links", ()):  # EG's links to the application's options
            link.unlink()

    def hear(self, event: KernelEvent) -> None:
        """Keep state, activity and connection up to date. Called on the event loop for every event of the kernel."""
        if event.kind == "beat" and event.beat is not None:
            beat = event.beat
            if beat.kernel_state in {"idle", "busy", "starting"}:
                if beat.kernel_state != "starting":
                    self.execution_state = beat.kernel_state
                at = utc_now() - datetime.timedelta(seconds=max(0.0, beat.idle_seconds))
                self.last_activity = max(self.last_activity, at)
        elif event.kind == "restarting":
            self.execution_state = "restarting"
            self.last_activity = utc_now()
        elif event.kind == "restarted":
            self.execution_state, self.reason = "idle", ""
            self.last_activity = utc_now()
            if event.connection is not None:
                apply_connection(self, event.connection)
        elif event.kind == "died":
            self.reason = event.message or ""
            self.execution_state = "restarting" if getattr(event.exit, "restarted", False) else "dead"
        elif event.kind == "gone":
            self.reason = event.message or ""
            self.execution_state = "dead"

    def _require(self) -> ClaimedKernel:
        claimed = self.claimed
        if claimed is None:
            raise LaunchError(f"Kernel {self.kernel_id} is not running. Start a new one.", reason="not_running")
        return claimed
