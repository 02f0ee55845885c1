"""What a kernel is doing, as far as one set of channels can tell.

It exists because a kernel says what it does when that changes, not when somebody connects: until it speaks, what our own
questions showed has to do. It does not promise more than the kernel says: the state is that of its last status message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message

_BUSY_AFTER = 0.25


class KernelStatus:
    """`execution_state` is starting, idle, busy or whatever else the kernel says; `last_activity` the time of the last message on
    iopub, in seconds since the epoch. `on_change` is called after every change of one of them.
    """

    def __init__(self, *, tell: Callable[[str], None]) -> None:
        """`tell(state)` gives the client a state that was found out, and not said by the kernel."""
        self.execution_state = "starting"
        self.last_activity = time.time()
        self.on_change: Callable[[], None] | None = None
        self._tell = tell
        self._busy_handle: asyncio.TimerHandle | None = None

    def note(self, message: Message) -> None:
        """The kernel said something on iopub."""
        self.last_activity = time.time()
        if message.header["msg_type"] == "status":
            try:
                state = message.content().get("execution_state")
            except ChannelError:
                state = None
            if isinstance(state, str):
                self.execution_state = state
        self._changed()

    def renew(self) -> None:
        """A new kernel process: it has said nothing yet."""
        self.execution_state = "starting"

    def answered_when_idle(self) -> None:
        """The kernel answered a question of ours on shell, which it does between two cells."""
        self._assume("idle")

    def answered(self) -> None:
        """The kernel lives. If its main thread stays silent, it is running something that began before we came."""
        if self.execution_state == "starting":
            self._busy_handle = asyncio.get_running_loop().call_later(_BUSY_AFTER, self._assume, "busy")

    def close(self) -> None:
        """Assume nothing any more, and call nobody."""
        self.on_change = None
        if self._busy_handle is not None:
            self._busy_handle.cancel()

    def _assume(self, state: str) -> None:
        """Learned by asking. The kernel's own statuses about our questions are kept from clients, so they are told here."""
        if self.execution_state == "starting":
            self.execution_state = state
            self._tell(state)
            self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()
