"""The client sessions of one kernel, and which channels serve which.

It exists because sessions come back: a session keeps its channels while it is away, as long as there are not too many of them,
and the channels that were connected before anybody asked are the first session's. It does not promise a session that left a
place for ever, and it knows nothing of what happens to the kernel.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from eg_knative.gateway.client_session import ClientSession, RelayClient
from eg_knative.gateway.orphans import Orphans
from eg_knative.gateway.synthetic import Entry
from eg_knative.wire.channels import ChannelSet
from eg_knative.wire.jupyter_messages import Message


class SessionRegister:
    """Iterate over it for the sessions. `watched` are the channels that say what the kernel is doing."""

    def __init__(
        self,
        *,
        first: ChannelSet,
        adopted: bool,
        open_channels: Callable[[str], ChannelSet],
        close_channels: Callable[[ChannelSet], None],
        orphans: Orphans,
        parked: int,
        parked_seconds: float,
        on_activity: Callable[[], None],
    ) -> None:
        """`first`: the channels of the first session. `adopted`: nobody connected them for us, so that another gateway's clients
        may have used the kernel before.

        `open_channels` is given the id of any further session. `parked`: sessions without a connection that are kept, and
        `parked_seconds` how long while others are connected.
        """
        self.watched = first
        self._unowned: ChannelSet | None = first
        self._adopted = adopted
        self._open_channels = open_channels
        self._close_channels = close_channels
        self._orphans = orphans
        self._parked = parked
        self._parked_seconds = parked_seconds
        self._on_activity = on_activity
        self._sessions: dict[str, ClientSession] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._watch(first)

    def __iter__(self) -> Iterator[ClientSession]:
        return iter(self._sessions.values())

    def all_channels(self) -> Iterator[ChannelSet]:
        """Of every session, and those that no session has yet."""
        if self._unowned is not None:
            yield self._unowned
        for session in self._sessions.values():
            yield session.channels

    def get(self, session_id: str) -> ClientSession | None:
        """The session of a client that was here."""
        return self._sessions.get(session_id)

    def connect(self, client: RelayClient) -> ClientSession:
        """The client's session, new or not; the client gets what was kept for it. `tidy` when it was told everything else.

        Raises ChannelError when no channels can be connected for it.
        """
        session = self._sessions.get(client.session_id)
        if session is None:
            channels, self._unowned = self._unowned, None
            if channels is None:
                channels = self._open_channels(client.session_id)
            else:
                for entry in channels.take_kept():
                    self._orphans.keep(*entry)
            session = ClientSession(session_id=client.session_id, channels=channels, reroute=self._owner_of)
            session.overhears = self._adopted and channels is self.watched
            self._sessions[client.session_id] = session
        session.connect(client)
        session.say(*self._orphans.take(client.session_id))
        return session

    def disconnect(self, client: RelayClient, unsent: Sequence[Entry]) -> None:
        """A client's connection is closed. `unsent`: what it was given and could not send."""
        session = self._sessions.get(client.session_id)
        if session is not None and session.disconnect(client, unsent):
            self.tidy()

    def close(self, *, code: int, reason: str) -> None:
        """End every connection with a WebSocket close code, close all channels, forget the sessions."""
        if self._sweep is not None:
            self._sweep.cancel()
        for session in self._sessions.values():
            if session.client is not None:
                session.client.end(code=code, reason=reason)
        for channels in list(self.all_channels()):
            self._close_channels(channels)
        self._sessions.clear()
        self._unowned = None

    def tidy(self) -> None:
        """Let go of sessions that were away too long, or are too many; the last channels stay, to know the kernel's state."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        parked = sorted((s for s in self._sessions.values() if s.client is None), key=lambda s: s.parked_at)
        connected = len(parked) < len(self._sessions)
        old = time.monotonic() - self._parked_seconds
        surplus = [s for i, s in enumerate(parked) if len(parked) - i > self._parked or (connected and s.parked_at <= old)]
        for session in surplus:
            del self._sessions[session.session_id]
            if session.channels is self.watched:
                self._watch(next(self.all_channels()))
            self._close_channels(session.channels)
        if connected and len(parked) > len(surplus):
            self._sweep = asyncio.get_running_loop().call_later(self._parked_seconds + 1, self.tidy)

    def _watch(self, channels: ChannelSet) -> None:
        self.watched = channels
        channels.status.on_change = self._on_activity

    def _owner_of(self, session: ClientSession, channel: str, message: Message) -> ClientSession | None:
        """A reply to a request that was made through an earlier gateway process goes to the session that made it."""
        if channel == "iopub" and not self._orphans.expected_back:
            session.overhears = False
        asked_by = message.parent.get("session")
        if asked_by == session.session_id or not isinstance(asked_by, str):
            return None
        owner = self._sessions.get(asked_by)
        if owner is None:
            self._orphans.keep(channel, message)  # it may come yet; this session gets it too, should it be its own after all
        return None if channel == "iopub" else owner
