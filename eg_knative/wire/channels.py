"""The four client sockets of one client session to one kernel.

It exists so that channels can be connected, and known to work, before anybody asks for the kernel, and so that a restart of the
kernel or a change of its key is a matter of the sockets, not of whoever listens. What goes is a matter of `outgoing`, whether the
kernel answers of `probe`, what it is doing of `kernel_status`; here are the life of the sockets, and what comes. It does not
promise delivery: a kernel that dies takes with it what it had not answered (`pending` says what that is).
"""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import zmq

from eg_knative.errors import ChannelError
from eg_knative.wire.backlog import Backlog, BacklogLimits, Entry
from eg_knative.wire.identities import primary_identity
from eg_knative.wire.jupyter_messages import Message, Signer, compose
from eg_knative.wire.kernel_status import KernelStatus
from eg_knative.wire.outgoing import Outgoing, Pending
from eg_knative.wire.probe import Probe
from eg_knative.wire.sockets import Sockets

if TYPE_CHECKING:
    from eg_knative.wire.control import ConnectionInfo

log = logging.getLogger(__name__)

_COMPLAINT_INTERVAL = 10.0

Listener = Callable[[str, Message], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelInfo:
    """A kernel's answer to kernel_info_request as JSON bytes, and the seconds until it and the first iopub message came."""

    content: bytes
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelLimits:
    """Bounds of one set: what waits for the kernel, requests remembered until their reply, what is kept for a client."""

    waiting_messages: int = 2_000
    waiting_size: int = 64 * 1024**2
    pending: int = 10_000
    backlog: BacklogLimits = dataclasses.field(default_factory=BacklogLimits)


async def connect_channels(*, context: zmq.Context[zmq.Socket[bytes]], connection: ConnectionInfo, timeout: float) -> ChannelSet:
    """The channels of a kernel's first client, connected and proven. Raises ChannelError, and leaves nothing open, otherwise."""
    channels = ChannelSet(context=context, connection=connection, identity=primary_identity(connection))
    try:
        await channels.prepare(timeout=timeout)
    except BaseException:
        channels.close()
        raise
    return channels


class ChannelSet:
    """shell, control and stdin share one identity; iopub is subscribed to everything.

    Until `prepare` or `release` has been called, and between `hold` and the next of them, what is sent waits (bounded, in order).
    Use it on one event loop. `status` is what the kernel is doing.
    """

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        connection: ConnectionInfo,
        identity: bytes | None = None,
        limits: ChannelLimits | None = None,
    ) -> None:
        """Connects at once. Raises ChannelError when the connection information cannot be used or no socket is left."""
        self.identity = identity or uuid.uuid4().hex.encode()
        self.connection = connection
        self.limits = limits or ChannelLimits()
        self.kernel_info: bytes | None = None
        self.kernel_session = ""
        self.status = KernelStatus(tell=self._tell_state)
        self.rejected = 0
        self._signer = Signer(key=connection.key, scheme=connection.signature_scheme)
        self._listener: Listener | None = None
        self._backlog = Backlog(self.limits.backlog)
        self._complained = 0.0
        self._outgoing = Outgoing(
            transmit=self._transmit,
            waiting_messages=self.limits.waiting_messages,
            waiting_size=self.limits.waiting_size,
            most_pending=self.limits.pending,
        )
        self._probe = Probe(transmit=self._transmit, answered=self._on_answer)
        self._sockets = Sockets(context=context, identity=self.identity, receive=self._receive, writable=self._outgoing.flush)
        self._sockets.connect(connection)

    async def prepare(self, *, timeout: float) -> KernelInfo:
        """Wait until the kernel answers and the iopub subscription is known to work, then let waiting messages go.

        A busy kernel answers on its control channel; one that has no such thread answers when it is idle.
        Raises ChannelError after `timeout` seconds.
        """
        started = time.monotonic()
        await self._probe.prove(timeout=timeout, closed=lambda: self._sockets.closed)
        if not self._sockets.closed:
            self.status.answered()
        self.release()
        return KernelInfo(content=self.kernel_info or b"{}", seconds=time.monotonic() - started)

    def rekey(self, connection: ConnectionInfo) -> None:
        """After a promotion: same sockets, new key. What is still on its way under the old key is dropped."""
        self._signer = Signer(key=connection.key, scheme=connection.signature_scheme)
        self.connection = connection

    @property
    def execution_state(self) -> str:
        """starting, idle, busy or whatever else the kernel says."""
        return self.status.execution_state

    @property
    def held(self) -> bool:
        """Does what is sent wait?"""
        return self._outgoing.held

    @property
    def pending(self) -> Mapping[str, Pending]:
        """The requests without a reply, by msg_id, oldest first."""
        return self._outgoing.pending

    def read_all(self) -> None:
        """Receive now what has already arrived, so that it comes before whatever the caller says next."""
        self._sockets.read_all()

    def hold(self) -> None:
        """What is sent from here on waits: the kernel is being restarted."""
        self._outgoing.held = True

    def release(self) -> None:
        """Send what waits, in order, and from here on at once."""
        self._outgoing.release()

    def reconnect(self, connection: ConnectionInfo) -> None:
        """New sockets, wherever the kernel listens now: for a new process. Requests that the old one never read are gone."""
        self._outgoing.held = True
        self.status.renew()
        self.rekey(connection)
        self._probe.renew()
        self._sockets.connect(connection)

    def disconnect(self) -> None:
        """Close the sockets of a kernel that is dead or being restarted; what is sent waits. `reconnect` brings the set back.

        A socket that goes on trying could connect to itself, where the kernel's port is an ephemeral one, and then hold that
        port.
        """
        self._outgoing.held = True
        self._sockets.close()

    def send(self, channel: str, message: Message | Sequence[bytes]) -> None:
        """Sign and send to shell, control or stdin. Raises ChannelError: malformed, or too much is waiting already."""
        self._outgoing.send(channel, message)

    def listen(self, on_message: Listener | None) -> None:
        """Give every message to `on_message`, those kept first. None: keep them, within the limits, until somebody listens."""
        self._listener = None
        if on_message is not None:
            for channel, message in self._backlog.drain():
                on_message(channel, message)
        self._listener = on_message

    def keep(self, channel: str, message: Message) -> None:
        """Keep a message that could not be given to the client, behind those kept already."""
        self._backlog.push(channel, message)

    def keep_first(self, entries: Sequence[Entry]) -> None:
        """Put back what a client was given before anything that is kept now, and did not get."""
        self._backlog.put_back(entries)

    def take_kept(self) -> list[Entry]:
        """What is kept, for whoever finds out whose it is."""
        return self._backlog.drain()

    def take_pending(self) -> dict[str, Pending]:
        """The requests without a reply, for whoever answers them in the kernel's place; they are forgotten, unsent ones too."""
        return self._outgoing.take_pending()

    def close(self) -> None:
        """Close the sockets and forget everything. Idempotent."""
        self._listener = None
        self.status.close()
        self._sockets.close()
        self._backlog.clear()
        self.take_pending()

    # what comes

    def _receive(self, channel: str, frames: list[bytes]) -> None:
        try:
            message = self._signer.open(frames)
            if self._probe.concerns(message):
                self._probe.receive(channel, message)
                return
            header = message.header
        except ChannelError as error:
            self._reject(channel, error)
            return
        self.kernel_session = str(header.get("session", ""))
        if channel == "iopub":
            self.status.note(message)
        else:
            message.expected = self._outgoing.settle(channel, message)
        self._give(channel, message)

    def _give(self, channel: str, message: Message) -> None:
        if self._listener is None:
            self._backlog.push(channel, message)
        else:
            self._listener(channel, message)

    def _reject(self, channel: str, error: ChannelError) -> None:
        """Counted, and said now and then; never with the content, which may be anybody's."""
        self.rejected += 1
        now = time.monotonic()
        if now - self._complained > _COMPLAINT_INTERVAL:
            self._complained = now
            log.warning("Dropped a message on %s (%d so far): %s", channel, self.rejected, error.message)

    def _on_answer(self, channel: str, message: Message) -> None:
        self.kernel_info = message.parts[3]
        self.kernel_session = str(message.header.get("session", ""))
        if channel == "shell":
            self.status.answered_when_idle()

    def _tell_state(self, state: str) -> None:
        self._give("iopub", compose("status", {"execution_state": state}, session=self.kernel_session))

    def _transmit(self, channel: str, message: Message) -> bool:
        """False: ZeroMQ's queue to the kernel is full, or there is no socket now."""
        return self._sockets.send(channel, self._signer.frames(message.parts))
