"""The four client sockets of one client session to one kernel.

It exists so that channels can be connected, and known to work, before anybody asks for the kernel, and so that a restart of the
kernel or a change of its key is a matter of the sockets, not of whoever listens. It does not promise delivery: a kernel that
dies takes with it what it had not answered (`pending` says what that is).
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import zmq

from eg_knative.errors import ChannelError
from eg_knative.wire.backlog import Backlog, BacklogLimits, Entry
from eg_knative.wire.jupyter_messages import Message, Signer, compose
from eg_knative.wire.sockets import Sockets

if TYPE_CHECKING:
    from eg_knative.wire.control import ConnectionInfo

log = logging.getLogger(__name__)

PROBE = "egk-probe-"
"""How the msg_id of our own kernel_info_requests begins: their replies and statuses are no client's business."""
_PROBE_BYTES = PROBE.encode()
_PROBE_PAUSES = (0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5)
_COMPLAINT_INTERVAL = 10.0
_BUSY_AFTER = 0.25

Listener = Callable[[str, Message], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelInfo:
    """A kernel's answer to kernel_info_request as JSON bytes, and the seconds until it and the first iopub message came."""

    content: bytes
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
    """A request without a reply yet. `header` is its header as the client sent it."""

    channel: str
    kind: str
    header: bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelLimits:
    """Bounds of one set: what waits for the kernel, requests remembered until their reply, what is kept for a client."""

    waiting_messages: int = 2_000
    waiting_size: int = 64 * 1024**2
    pending: int = 10_000
    backlog: BacklogLimits = dataclasses.field(default_factory=BacklogLimits)


def primary_identity(connection: ConnectionInfo) -> bytes:
    """The ZeroMQ identity of a kernel's first client, the same for every gateway process that ever speaks to the kernel.

    A kernel addresses its reply to an identity: a cell that ran while the gateway was replaced is answered to the next one.
    Two sets that are open at once must not share it: the kernel's socket would hand it from one to the other and back.
    """
    place = f"{connection.transport}:{connection.ip}:{connection.shell_port}:{connection.iopub_port}"
    return b"egk-first-" + hashlib.sha256(place.encode()).hexdigest()[:24].encode()


def session_identity(session_id: str) -> bytes:
    """The ZeroMQ identity of any further client session."""
    return b"egk-" + hashlib.sha256(session_id.encode("utf-8", "replace")).hexdigest()[:24].encode()


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
    Use it on one event loop. `on_state` is called after every change of `execution_state` or `last_activity` (seconds since the
    epoch).
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
        self.execution_state = "starting"
        self.last_activity = time.time()
        self.rejected = 0
        self.pending: dict[str, Pending] = {}
        self.on_state: Callable[[ChannelSet], None] | None = None
        self._signer = Signer(key=connection.key, scheme=connection.signature_scheme)
        self._listener: Listener | None = None
        self._backlog = Backlog(self.limits.backlog)
        self._waiting: deque[tuple[str, Message]] = deque()
        self._waiting_size = 0
        self._held = True
        self._complained = 0.0
        self._probe = f"{PROBE}{uuid.uuid4().hex}-"
        self._proof = self._new_proof()
        self._busy_handle: asyncio.TimerHandle | None = None
        self._sockets = Sockets(context=context, identity=self.identity, receive=self._receive, writable=self._flush)
        self._sockets.connect(connection)

    async def prepare(self, *, timeout: float) -> KernelInfo:
        """Wait until the kernel answers and the iopub subscription is known to work, then let waiting messages go.

        A busy kernel answers on its control channel; one that has no such thread answers when it is idle.
        Raises ChannelError after `timeout` seconds.
        """
        started = time.monotonic()
        proof = self._proof = self._new_proof()
        attempt = 0
        while not proof.complete.is_set():
            left = started + timeout - time.monotonic()
            if left <= 0 or self._sockets.closed:
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
        if self.execution_state == "starting" and not self._sockets.closed:
            self._busy_handle = asyncio.get_running_loop().call_later(_BUSY_AFTER, self._assume_busy)
        self.release()
        return KernelInfo(content=self.kernel_info or b"{}", seconds=time.monotonic() - started)

    def rekey(self, connection: ConnectionInfo) -> None:
        """After a promotion: same sockets, new key. What is still on its way under the old key is dropped."""
        self._signer = Signer(key=connection.key, scheme=connection.signature_scheme)
        self.connection = connection

    @property
    def held(self) -> bool:
        """Does what is sent wait?"""
        return self._held

    def read_all(self) -> None:
        """Receive now what has already arrived, so that it comes before whatever the caller says next."""
        self._sockets.read_all()

    def hold(self) -> None:
        """What is sent from here on waits: the kernel is being restarted."""
        self._held = True

    def release(self) -> None:
        """Send what waits, in order, and from here on at once."""
        self._held = False
        self._flush()

    def reconnect(self, connection: ConnectionInfo) -> None:
        """New sockets, wherever the kernel listens now: for a new process. Requests that the old one never read are gone."""
        self._held = True
        self.execution_state = "starting"
        self.rekey(connection)
        self._proof = self._new_proof()
        self._sockets.connect(connection)

    def disconnect(self) -> None:
        """Close the sockets of a kernel that is dead or being restarted; what is sent waits. `reconnect` brings the set back.

        A socket that goes on trying could connect to itself, where the kernel's port is an ephemeral one, and then hold that
        port.
        """
        self._held = True
        self._sockets.close()

    def send(self, channel: str, message: Message | Sequence[bytes]) -> None:
        """Sign and send to shell, control or stdin. Raises ChannelError: malformed, or too much is waiting already."""
        if not isinstance(message, Message):
            message = Message(message)
        if channel not in ("shell", "control", "stdin"):
            raise ChannelError(f"Nothing can be sent on the channel {channel!r}.", field="channel")
        kind = message.kind
        if self._held or self._waiting:
            if len(self._waiting) >= self.limits.waiting_messages or self._waiting_size + message.size > self.limits.waiting_size:
                raise ChannelError(
                    f"The kernel is not taking messages; {len(self._waiting)} are waiting already.",
                    reason="too_many_waiting",
                )
            self._waiting.append((channel, message))
            self._waiting_size += message.size
        elif not self._transmit(channel, message):
            self._waiting.append((channel, message))
            self._waiting_size += message.size
        if channel != "stdin" and kind.endswith("_request"):
            self._remember(channel, message)

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
        pending, self.pending = self.pending, {}
        self._waiting.clear()
        self._waiting_size = 0
        return pending

    def close(self) -> None:
        """Close the sockets and forget everything. Idempotent."""
        self._listener = self.on_state = None
        if self._busy_handle is not None:
            self._busy_handle.cancel()
        self._sockets.close()
        self._backlog.clear()
        self.take_pending()

    # what comes

    def _receive(self, channel: str, frames: list[bytes]) -> None:
        try:
            message = self._signer.open(frames)
            if _PROBE_BYTES in message.parts[1]:
                self._on_probe(channel, message)
                return
            header = message.header
        except ChannelError as error:
            self._reject(channel, error)
            return
        self.kernel_session = str(header.get("session", ""))
        if channel == "iopub":
            self._note_activity(message)
        else:
            asked = str(message.parent.get("msg_id"))
            message.expected = asked in self.pending
            if channel != "stdin":
                self.pending.pop(asked, None)
        self._give(channel, message)

    def _give(self, channel: str, message: Message) -> None:
        if self._listener is None:
            self._backlog.push(channel, message)
        else:
            self._listener(channel, message)

    def _note_activity(self, message: Message) -> None:
        self.last_activity = time.time()
        if message.header["msg_type"] == "status":
            try:
                state = message.content().get("execution_state")
            except ChannelError:
                state = None
            if isinstance(state, str):
                self.execution_state = state
        if self.on_state is not None:
            self.on_state(self)

    def _reject(self, channel: str, error: ChannelError) -> None:
        """Counted, and said now and then; never with the content, which may be anybody's."""
        self.rejected += 1
        now = time.monotonic()
        if now - self._complained > _COMPLAINT_INTERVAL:
            self._complained = now
            log.warning("Dropped a message on %s (%d so far): %s", channel, self.rejected, error.message)

    # our own questions

    @staticmethod
    def _new_proof() -> _Proof:
        return _Proof()

    def _ask(self, attempt: int) -> None:
        # Control answers even while a cell runs. Shell: for kernels without kernel_info on control, and its answer means idle.
        for channel in ("control", "shell") if attempt % 3 == 0 else ("control",):
            identifier = f"{self._probe}{channel}-{attempt}"
            request = compose("kernel_info_request", {}, session=self._probe, identifier=identifier)
            self._transmit(channel, request)

    def _on_probe(self, channel: str, message: Message) -> None:
        proof = self._proof
        if channel == "iopub":
            proof.heard_iopub = True
        elif str(message.parent.get("msg_id", "")).startswith(self._probe) and message.kind == "kernel_info_reply":
            proof.answered = True
            self.kernel_info = message.parts[3]
            self.kernel_session = str(message.header.get("session", ""))
            if channel == "shell" and self.execution_state == "starting":
                self._assume("idle")
        if proof.heard_iopub and proof.answered:
            proof.complete.set()

    def _assume_busy(self) -> None:
        """The kernel lives and its main thread does not answer: it is running something that began before we came."""
        if self.execution_state == "starting":
            self._assume("busy")

    def _assume(self, state: str) -> None:
        """Learned by asking. The kernel's own statuses about our questions are kept from clients, so they are told here."""
        self.execution_state = state
        self._give("iopub", compose("status", {"execution_state": state}, session=self.kernel_session))
        if self.on_state is not None:
            self.on_state(self)

    # what goes

    def _remember(self, channel: str, message: Message) -> None:
        if len(self.pending) >= self.limits.pending:
            del self.pending[next(iter(self.pending))]
        self.pending[message.identifier] = Pending(channel=channel, kind=message.kind, header=message.parts[0])

    def _transmit(self, channel: str, message: Message) -> bool:
        """False: ZeroMQ's queue to the kernel is full, or there is no socket now."""
        return self._sockets.send(channel, self._signer.frames(message.parts))

    def _flush(self) -> None:
        while self._waiting and not self._held:
            channel, message = self._waiting[0]
            if not self._transmit(channel, message):
                return
            self._waiting.popleft()
            self._waiting_size -= message.size


class _Proof:
    """What is known of one connection: the subscription works, the kernel answers."""

    def __init__(self) -> None:
        self.heard_iopub = False
        self.answered = False
        self.complete = asyncio.Event()
