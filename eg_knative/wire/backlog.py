"""A bounded memory of messages for a client that is not there.

It exists so that a client that comes back gets what it missed. It does not promise all of it: past the bounds the oldest
*outputs* go first, because a cell whose reply or idle status is lost looks busy for ever, while a cell with a gap in its output
says so.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message, compose

Entry = tuple[str, Message]
_KEPT_KINDS = frozenset({"status", "execute_input", "error", "shutdown_reply", "comm_open", "comm_close"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BacklogLimits:
    """Messages and bytes kept for one absent client."""

    messages: int = 10_000
    size: int = 32 * 1024**2


class Backlog:
    """Messages in the order of their arrival, within `limits`."""

    def __init__(self, limits: BacklogLimits) -> None:
        self._limits = limits
        self._entries: deque[Entry] = deque()
        self._size = 0
        self._dropped = 0
        self._dropped_size = 0
        self._dropped_parent = b"{}"
        self._session = ""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def dropped(self) -> int:
        """Messages let go since the last `drain`."""
        return self._dropped

    def push(self, channel: str, message: Message) -> None:
        """Keep one; lets older outputs go when that passes a bound."""
        self._entries.append((channel, message))
        self._size += message.size
        self._bound()

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Keep these before everything else; they are older."""
        self._entries.extendleft(reversed(entries))
        self._size += sum(message.size for _, message in entries)
        self._bound()

    def _bound(self) -> None:
        if self._size > self._limits.size or len(self._entries) > self._limits.messages:
            self._shrink()

    def drain(self) -> list[Entry]:
        """Everything, oldest first, and forget it. Where outputs were let go, a line on standard error says how many."""
        entries = list(self._entries)
        if self._dropped:
            text = (
                f"[{self._dropped} messages ({self._dropped_size} bytes) of the kernel were let go while nobody was connected: "
                f"at most {self._limits.messages} messages and {self._limits.size} bytes are kept.]\n"
            )
            content = {"name": "stderr", "text": text}
            marker = compose("stream", content, parent=self._dropped_parent, session=self._session)
            entries.insert(0, ("iopub", marker))
        self.clear()
        return entries

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._size = self._dropped = self._dropped_size = 0
        self._dropped_parent = b"{}"

    def _shrink(self) -> None:
        """Down to three quarters, so that a flood pays for this rarely: outputs first, then whatever is oldest."""
        for outputs_only in (True, False):
            size = self._size - self._limits.size * 3 // 4
            count = len(self._entries) - self._limits.messages * 3 // 4
            kept: deque[Entry] = deque()
            for channel, message in self._entries:
                if (size > 0 or count > 0) and not (outputs_only and _matters(channel, message)):
                    size -= message.size
                    count -= 1
                    self._let_go(message)
                else:
                    kept.append((channel, message))
            self._entries = kept
            if self._size <= self._limits.size and len(kept) <= self._limits.messages:
                return

    def _let_go(self, message: Message) -> None:
        size = message.size
        self._size -= size
        self._dropped += 1
        self._dropped_size += size
        self._dropped_parent = message.parts[1]


def _matters(channel: str, message: Message) -> bool:
    try:
        return channel != "iopub" or message.kind in _KEPT_KINDS
    except ChannelError:
        return False
