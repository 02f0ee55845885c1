"""One client session of one kernel: its channels, and the connection that serves it now, if any.

It exists because connections come and go (JupyterLab opens, drops and opens again at every notebook) while the session, its
ZeroMQ identity and the messages that it is owed stay. It does not promise that what was handed to a connection reached the
client: TCP does not say.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from eg_knative.gateway.synthetic import Entry
from eg_knative.wire.channels import ChannelSet
from eg_knative.wire.jupyter_messages import Message


class RelayClient(Protocol):
    """One connection of a client."""

    session_id: str

    def deliver(self, channel: str, message: Message) -> bool:
        """Send one message. False: the connection is closed or closing, and the message was not taken."""

    def supersede(self) -> Sequence[Entry]:
        """Another connection of the same session is here: take no more, and give back what has not left yet."""

    def end(self, *, code: int, reason: str) -> None:
        """Close the connection with a WebSocket close code."""


class ClientSession:
    """`reroute` is asked about replies to requests that did not go through these channels: whose are they, if not this
    session's?
    """

    def __init__(
        self, *, session_id: str, channels: ChannelSet, reroute: Callable[[ClientSession, str, Message], ClientSession | None]
    ) -> None:
        self.session_id = session_id
        self.channels = channels
        self.client: RelayClient | None = None
        self.overhears = False  # it is asked about iopub too: messages for sessions that are not back yet pass here
        self.parked_at = time.monotonic()
        self._reroute = reroute

    def connect(self, client: RelayClient) -> None:
        """The newer connection wins at once; it gets what the older one had not sent, then what was kept, then what comes."""
        older, self.client = self.client, None
        self.channels.listen(None)
        if older is not None:
            self.channels.keep_first(older.supersede())
        self.client = client
        self.channels.listen(self.deliver)

    def disconnect(self, client: RelayClient, unsent: Sequence[Entry]) -> bool:
        """The connection is gone; False when it was not this session's any more. From here on messages are kept."""
        if self.client is not client:
            return False
        self.client = None
        self.parked_at = time.monotonic()
        self.channels.listen(None)
        self.channels.keep_first(unsent)
        return True

    def deliver(self, channel: str, message: Message) -> None:
        """To the connection, or to what is kept for the next one."""
        if self.overhears if channel == "iopub" else not message.expected:
            other = self._reroute(self, channel, message)
            if other is not None:
                other.deliver_own(channel, message)
                return
        self.deliver_own(channel, message)

    def deliver_own(self, channel: str, message: Message) -> None:
        """As `deliver`, without asking whose it is."""
        if self.client is None or not self.client.deliver(channel, message):
            self.channels.keep(channel, message)

    def say(self, *entries: Entry) -> None:
        """Deliver the gateway's own messages."""
        for channel, message in entries:
            self.deliver_own(channel, message)
