"""What the relay needs of a kernel, whoever launched it.

It exists so that one relay serves kernels of our pools (`pool.manager.ClaimedKernel` satisfies it as it is) and kernels of any
other process proxy (`managed_kernel.ManagedKernel`). It promises nothing about how a kernel is found or how long it lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from eg_knative.wire.channels import ChannelSet
    from eg_knative.wire.control import ConnectionInfo


class KernelEventLike(Protocol):
    """One thing that happened to a kernel. `kind` is one of

    - `restarting`: a new kernel process is being started; it was asked for, unless `died` came just before
    - `restarted`: the new process is bound; `connection` says where when it moved
    - `died`: the process ended unasked; `message` says why in words; `exit` is None or has `restarted` (an attribute or a key):
      whether it is started again
    - `gone`: the kernel will never answer again
    - `lost`, `found`, `beat`: nothing that a client would notice
    """

    @property
    def kind(self) -> str: ...
    @property
    def message(self) -> str | None: ...
    @property
    def exit(self) -> Any: ...
    @property
    def connection(self) -> ConnectionInfo | None: ...


class RelayedKernel(Protocol):
    """One kernel as the relay sees it."""

    @property
    def kernel_id(self) -> str: ...

    @property
    def connection(self) -> ConnectionInfo:
        """Where it listens now, or listened last."""

    def take_channels(self) -> ChannelSet | None:
        """Hand over the connected channels, once; None when there are none (any more)."""

    def add_listener(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        """Call `listener` with every KernelEventLike, on the event loop; what is returned takes it off again."""
