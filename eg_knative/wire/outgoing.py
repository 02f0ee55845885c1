"""What goes from one client session to its kernel: messages that wait, and requests that have no reply yet.

It exists because a kernel that is being restarted, or whose queue is full, takes nothing for a while, and because whoever
answers in a dead kernel's place has to know what was asked. It does not promise delivery: what ZeroMQ took may still be lost
with the kernel, and past its bounds it forgets the oldest request.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """A request without a reply yet. `header` is its header as the client sent it."""

    channel: str
    kind: str
    header: bytes


class Outgoing:
    """Messages in the order in which they were sent; `pending` are the requests without a reply, by msg_id.

    It begins held. `transmit(channel, message)` gives a message to the socket; False: the socket does not take it now.
    """

    def __init__(
        self, *, transmit: Callable[[str, Message], bool], waiting_messages: int, waiting_size: int, most_pending: int
    ) -> None:
        """`waiting_size` is in bytes."""
        self.held = True
        self.pending: dict[str, Pending] = {}
        self._transmit = transmit
        self._waiting_messages = waiting_messages
        self._most_waiting_size = waiting_size
        self._most_pending = most_pending
        self._waiting: deque[tuple[str, Message]] = deque()
        self._waiting_size = 0

    def send(self, channel: str, message: Message | Sequence[bytes]) -> None:
        """Send to shell, control or stdin, or let it wait. Raises ChannelError: malformed, or too much is waiting already."""
        if not isinstance(message, Message):
            message = Message(message)
        if channel not in ("shell", "control", "stdin"):
            raise ChannelError(f"Nothing can be sent on the channel {channel!r}.", field="channel")
        kind = message.kind
        if self.held or self._waiting:
            if len(self._waiting) >= self._waiting_messages or self._waiting_size + message.size > self._most_waiting_size:
                raise ChannelError(
                    f"The kernel is not taking messages; {len(self._waiting)} are waiting already.",
                    reason="too_many_waiting",
                )
            self._wait(channel, message)
        elif not self._transmit(channel, message):
            self._wait(channel, message)
        if channel != "stdin" and kind.endswith("_request"):
            self._remember(channel, message)

    def release(self) -> None:
        """Send what waits, in order, and from here on at once."""
        self.held = False
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it, unless it is held."""
        while self._waiting and not self.held:
            channel, message = self._waiting[0]
            if not self._transmit(channel, message):
                return
            self._waiting.popleft()
            self._waiting_size -= message.size

    def settle(self, channel: str, message: Message) -> bool:
        """Something came that names a parent: was that a request of ours? A reply ends it; a question on stdin does not."""
        asked = str(message.parent.get("msg_id"))
        expected = asked in self.pending
        if channel != "stdin":
            self.pending.pop(asked, None)
        return expected

    def take_pending(self) -> dict[str, Pending]:
        """The requests without a reply; they are forgotten, and so is all that waits."""
        pending, self.pending = self.pending, {}
        self._waiting.clear()
        self._waiting_size = 0
        return pending

    def _wait(self, channel: str, message: Message) -> None:
        self._waiting.append((channel, message))
        self._waiting_size += message.size

    def _remember(self, channel: str, message: Message) -> None:
        if len(self.pending) >= self._most_pending:
            del self.pending[next(iter(self.pending))]
        self.pending[message.identifier] = Pending(channel=channel, kind=message.kind, header=message.parts[0])
