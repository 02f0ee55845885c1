"""The tasks that wait until a kernel's channels are known to work.

They exist because what clients send waits for that, and must not wait for ever: a kernel that does not answer in time is sent
everything all the same. It does not promise that the kernel reads it.
"""

from __future__ import annotations

import asyncio
import logging

from eg_knative.errors import ChannelError
from eg_knative.wire.channels import ChannelSet

log = logging.getLogger(__name__)


class ChannelProofs:
    """At most one task for each set of channels of one kernel."""

    def __init__(self, *, kernel_id: str, seconds: float) -> None:
        """`seconds`: how long a set's messages wait for an answer of the kernel."""
        self._kernel_id = kernel_id
        self._seconds = seconds
        self._proofs: dict[ChannelSet, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def begin(self, channels: ChannelSet) -> None:
        """Let what waits in these channels go as soon as they are proven, or have waited too long."""
        self.cancel(channels)
        self._proofs[channels] = asyncio.get_running_loop().create_task(self._prove(channels))

    def cancel(self, channels: ChannelSet) -> None:
        """Idempotent. The task ends a little later; see `ended`."""
        proof = self._proofs.pop(channels, None)
        if proof is not None:
            proof.cancel()
            self._ending.add(proof)
            proof.add_done_callback(self._ending.discard)

    @property
    def ending(self) -> bool:
        """Something was cancelled and still runs."""
        return bool(self._ending)

    async def ended(self) -> None:
        """Wait until nothing that was cancelled runs any more."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _prove(self, channels: ChannelSet) -> None:
        try:
            await channels.prepare(timeout=self._seconds)
        except ChannelError as error:
            log.warning("Kernel %s: %s Messages are sent to it all the same.", self._kernel_id, error.message)
            channels.release()
        except Exception:
            log.exception("Kernel %s: its channels could not be proven; messages are sent to it all the same.", self._kernel_id)
            channels.release()
        if self._proofs.get(channels) is asyncio.current_task():
            del self._proofs[channels]
