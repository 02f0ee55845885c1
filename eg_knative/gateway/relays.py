"""The relays of one gateway process, by kernel id.

It exists so that a kernel has one relay for all its clients, whoever asks first, and so that what a relay leaves running when its
kernel is shut down is waited for before the process ends. It does not promise that a kernel whose relay it holds is alive.
"""

from __future__ import annotations

from collections.abc import Callable

import zmq

from eg_knative.gateway.relay import KernelRelay, RelayLimits
from eg_knative.gateway.relayed_kernel import RelayedKernel


class Relays:
    """Use them on one event loop."""

    def __init__(self, *, context: zmq.Context[zmq.Socket[bytes]], limits: RelayLimits | None = None) -> None:
        self._context = context
        self._limits = limits or RelayLimits()
        self._relays: dict[str, KernelRelay] = {}
        self._ending: set[KernelRelay] = set()

    def attach(self, kernel: RelayedKernel, *, on_activity: Callable[[KernelRelay], None] | None = None) -> KernelRelay:
        """Begin to relay a kernel, or find the relay that does. Raises ChannelError when its channels cannot be connected."""
        relay = self._relays.get(kernel.kernel_id)
        if relay is None:
            relay = KernelRelay(kernel=kernel, context=self._context, limits=self._limits, on_activity=on_activity)
            self._relays[kernel.kernel_id] = relay
        return relay

    def get(self, kernel_id: str) -> KernelRelay | None:
        """The relay of an attached kernel."""
        return self._relays.get(kernel_id)

    def detach(self, kernel_id: str, *, reason: str = "The kernel was shut down.") -> None:
        """The kernel is gone for good: its clients hear it and are closed. Idempotent."""
        relay = self._relays.pop(kernel_id, None)
        if relay is not None:
            relay.end(reason)
            self._ending = {ending for ending in self._ending if ending.unfinished} | {relay}

    async def close(self) -> None:
        """The gateway goes away, kernels live on: connections are closed with 1001."""
        relays = list(self._relays.values())
        self._relays.clear()
        for relay in relays:
            relay.close()
            self._ending.add(relay)
        for relay in tuple(self._ending):
            await relay.closed()
        self._ending.clear()
