"""Kernels that are not ours: whatever EG's RemoteKernelManager holds, as the relay wants to see it.

It exists so that LocalProcessProxy and every other proxy get the same channels, and so that an open WebSocket follows a kernel
to its new ports after a restart, which stock EG never does. It does not promise to know why such a kernel died: EG does not say.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import zmq
from jupyter_server._tz import utcnow

from eg_knative.gateway.relay import KernelRelay
from eg_knative.gateway.relayed_kernel import RelayedKernel
from eg_knative.gateway.relays import Relays
from eg_knative.wire.channels import ChannelSet
from eg_knative.wire.control import ConnectionInfo

log = logging.getLogger(__name__)

_RESTART_POLL_SECONDS = 0.05
_RESTART_LIMIT_SECONDS = 120.0
_DIED = "the kernel process ended; the process proxy does not say why"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManagedEvent:
    """A KernelEventLike."""

    kind: str
    message: str | None = None
    exit: Any = None
    connection: ConnectionInfo | None = None


class ManagedKernel:
    """One jupyter_client kernel manager as a RelayedKernel. Its restarter's callbacks become events."""

    def __init__(self, *, kernel_id: str, manager: Any) -> None:
        self._kernel_id = kernel_id
        self._manager = manager
        self._listeners: list[Callable[[Any], None]] = []
        self._following: asyncio.Task[None] | None = None
        self._restarts = 0
        manager.add_restart_callback(self._died, "restart")
        manager.add_restart_callback(self._dead, "dead")

    @property
    def kernel_id(self) -> str:
        return self._kernel_id

    @property
    def connection(self) -> ConnectionInfo:
        """As the manager has it now."""
        manager = self._manager
        return ConnectionInfo(
            ip=manager.ip,
            transport=manager.transport,
            shell_port=manager.shell_port,
            iopub_port=manager.iopub_port,
            stdin_port=manager.stdin_port,
            control_port=manager.control_port,
            hb_port=manager.hb_port,
            key=manager.session.key.decode(),
            signature_scheme=manager.session.signature_scheme,
            kernel_name=manager.kernel_name,
        )

    def take_channels(self) -> ChannelSet | None:
        """There are none."""
        return None

    def add_listener(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return self._close_after(listener)

    def restart_began(self) -> None:
        """Somebody asked for a restart. Call `restart_ended` when it is over."""
        self._restarts += 1
        if self._restarts == 1:
            self._tell(ManagedEvent(kind="restarting"))

    def restart_ended(self, *, error: str | None = None) -> None:
        """The restart is over; `error` says why it failed."""
        self._restarts = max(0, self._restarts - 1)
        if self._restarts:
            return
        if error is None:
            self._tell(ManagedEvent(kind="restarted", connection=self.connection))
        else:
            self._tell(ManagedEvent(kind="died", message=error))

    def close(self) -> None:
        """Stop watching."""
        self._listeners.clear()
        self._manager.remove_restart_callback(self._died, "restart")
        self._manager.remove_restart_callback(self._dead, "dead")
        if self._following is not None:
            self._following.cancel()

    def _close_after(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        """A kernel that nobody listens to any more is not watched."""

        def remove() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners:
                self.close()

        return remove

    def _died(self) -> None:
        """The restarter calls this before it restarts, and nobody when it has: the manager is followed until it is done."""
        self._tell(ManagedEvent(kind="died", message=_DIED, exit={"restarted": True}))
        if self._following is None or self._following.done():
            self._following = asyncio.get_running_loop().create_task(self._follow(self._manager.kernel))

    def _dead(self) -> None:
        self._tell(ManagedEvent(kind="gone", message="the kernel could not be restarted"))

    async def _follow(self, before: Any) -> None:
        """A restart gives the manager another process (proxy) object, and EG's managers a flag while it lasts."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _RESTART_LIMIT_SECONDS
        while loop.time() < until:
            await asyncio.sleep(_RESTART_POLL_SECONDS)
            process = self._manager.kernel
            if process is not None and process is not before and not getattr(self._manager, "restarting", False):
                break
        else:
            log.warning("Kernel %s: its restart was not seen to end within %g s.", self._kernel_id, _RESTART_LIMIT_SECONDS)
        self._tell(ManagedEvent(kind="restarted", connection=self.connection))

    def _tell(self, event: ManagedEvent) -> None:
        for listener in tuple(self._listeners):
            listener(event)


def relay_of(kernel_manager: Any, kernel_id: str, settings: dict[str, Any]) -> KernelRelay:
    """The relay of a kernel of this mapping kernel manager; made here when nobody attached the kernel before.

    Raises ChannelError when the channels cannot be connected.
    """
    relays: Relays | None = settings.get("kernel_relays")
    if relays is None:
        relays = settings["kernel_relays"] = Relays(context=zmq.Context.instance())
    relay = relays.get(kernel_id)
    if relay is None:
        manager = kernel_manager.get_kernel(kernel_id)

        def note(active: KernelRelay) -> None:
            manager.execution_state = active.execution_state
            manager.last_activity = kernel_manager.last_kernel_activity = utcnow()

        claimed: RelayedKernel | None = getattr(manager, "claimed", None)  # a kernel of ours that could not be attached before
        relay = relays.attach(claimed or ManagedKernel(kernel_id=kernel_id, manager=manager), on_activity=note)
    return relay
