"""Our own questions to a kernel: does it answer, and does the iopub subscription work?

It exists because a ZeroMQ socket that is connected says neither: a request may be lost before the kernel binds, and output is
lost until the subscription has reached it. So kernel_info is asked until an answer and its status on iopub have come. It does
not promise that the kernel goes on answering.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message, compose

PROBE = "egk-probe-"
"""How the msg_id of our own kernel_info_requests begins: their replies and statuses are no client's business."""
_PROBE_BYTES = PROBE.encode()
_PROBE_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5)


class Probe:
    """The questions of one set of channels.

    `transmit(channel, message)` gives one to the socket. `answered(channel, message)` is called for every kernel_info_reply to
    one of them.
    """

    def __init__(self, *, transmit: Callable[[str, Message], bool], answered: Callable[[str, Message], None]) -> None:
        self._transmit = transmit
        self._answered = answered
        self._prefix = f"{PROBE}{uuid.uuid4().hex}-"
        self._proof = _Proof()

    def renew(self) -> None:
        """The sockets are new: what was known of the old ones proves nothing."""
        self._proof = _Proof()

    async def prove(self, *, timeout: float, closed: Callable[[], bool]) -> None:
        """Ask until everything is proven. Raises ChannelError after `timeout` seconds, or when the sockets are `closed`."""
        started = time.monotonic()
        proof = self._proof = _Proof()
        attempt = 0
        while not proof.complete.is_set():
            left = started + timeout - time.monotonic()
            if left <= 0 or closed():
                raise ChannelError(
                    f"The kernel did not answer a kernel_info_request within {timeout:g} s (iopub heard: {proof.heard_iopub}).",
                    reason="channels_unproven",
                )
            self._ask(attempt)
            pause = _PROBE_PAUSES[min(attempt, len(_PROBE_PAUSES) - 1)]
            attempt += 1
            try:
                await asyncio.wait_for(proof.complete.wait(), min(pause, left))
            except asyncio.TimeoutError:
                continue

    @staticmethod
    def concerns(message: Message) -> bool:
        """Does a message belong to a question of ours, or of another gateway? No JSON is read for it."""
        return _PROBE_BYTES in message.parts[1]

    def receive(self, channel: str, message: Message) -> None:
        """A message that `concerns` a question. Raises ChannelError when its header cannot be read."""
        proof = self._proof
        if channel == "iopub":
            proof.heard_iopub = True
        elif str(message.parent.get("msg_id", "")).startswith(self._prefix) and message.kind == "kernel_info_reply":
            proof.answered = True
            self._answered(channel, message)
        if proof.heard_iopub and proof.answered:
            proof.complete.set()

    def _ask(self, attempt: int) -> None:
        # Control answers even while a cell runs. Shell: for kernels without kernel_info on control, and its answer means idle.
        for channel in ("control", "shell") if attempt % 3 == 0 else ("control",):
            identifier = f"{self._prefix}{channel}-{attempt}"
            request = compose("kernel_info_request", {}, session=self._prefix, identifier=identifier)
            self._transmit(channel, request)


class _Proof:
    """What is known of one connection: the subscription works, the kernel answers."""

    def __init__(self) -> None:
        self.heard_iopub = False
        self.answered = False
        self.complete = asyncio.Event()
