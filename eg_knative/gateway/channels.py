"""The WebSocket of a kernel's channels: `/api/kernels/{id}/channels`.

It exists in place of Enterprise Gateway's handler, with the same URL, subprotocols and settings. What differs: frames leave at
once (TCP_NODELAY), nothing is waited for in the handshake, messages are relayed as bytes, and a session that opens a second
connection has the older one replaced at once. It does not promise to keep a client that does not read: past a bound it is
disconnected.
"""

from __future__ import annotations

import logging
import struct
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from enterprise_gateway.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.zmqhandlers import WS_PING_INTERVAL, WebSocketMixin
from tornado import iostream, web, websocket
from tornado.ioloop import IOLoop, PeriodicCallback

from eg_knative.errors import ChannelError
from eg_knative.gateway import synthetic
from eg_knative.gateway.managed_kernel import relay_of
from eg_knative.gateway.rate_limit import RateLimiter, RateLimits
from eg_knative.gateway.relay import KernelRelay
from eg_knative.gateway.websocket import V1, decode_legacy, decode_v1, encode_legacy, encode_v1
from eg_knative.wire.jupyter_messages import Message, pack

log = logging.getLogger(__name__)

CLOSE_REPLACED = 4409
CLOSE_TOO_SLOW = 4408
CLOSE_UNUSABLE = 1011
_COMPLAINT_INTERVAL = 5.0
_DEFAULT_UNSENT_BYTES = 64 * 1024**2


class ChannelsHandler(
    TokenAuthorizationMixin,  # type: ignore[misc]
    CORSMixin,  # type: ignore[misc]
    JSONErrorsMixin,  # type: ignore[misc]
    WebSocketMixin,  # type: ignore[misc]
    websocket.WebSocketHandler,
    JupyterHandler,  # type: ignore[misc]
):
    """One client connection to one kernel.

    tornado settings, beside jupyter_server's: `kernel_relays` (Relays; made when absent), `eg_channels_unsent_bytes` (how much
    may wait for a client that does not read, 64 MiB).
    """

    # The handshake

    def initialize(self) -> None:
        self.session_id = ""
        self.relay: KernelRelay | None = None
        self._v1 = False
        self._unsent: deque[tuple[synthetic.Entry, int, Any]] = deque()  # what, its bytes on the wire, the Future of its write
        self._unsent_size = 0
        self._complained = 0.0
        self._bad_frames = 0
        self._keepalive: PeriodicCallback | None = None
        self._connection: websocket.WebSocketProtocol | None = None  # ws_connection is forgotten as soon as closing begins

    def set_default_headers(self) -> None:
        """None of JupyterHandler's make sense on a WebSocket."""

    @property
    def ping_interval(self) -> None:
        """tornado's own pings are off: its time limit cannot exceed one interval. `_ping` does it."""
        return

    @property
    def ping_timeout(self) -> None:
        return

    async def get(self, kernel_id: str) -> None:
        """Upgrade, unless the client may not, or the kernel does not exist."""
        user = self.get_current_user()
        if user is None or not self.authorizer.is_authorized(self, user, "execute", "kernels"):
            raise web.HTTPError(403, "Not allowed to use this kernel.")
        self.session_id = self.get_argument("session_id", "") or uuid.uuid4().hex
        self.kernel_manager.check_kernel_id(kernel_id)
        try:
            self.relay = relay_of(self.kernel_manager, kernel_id, self.settings)
        except ChannelError as error:
            raise web.HTTPError(503, error.message) from error
        await websocket.WebSocketHandler.get(self, kernel_id=kernel_id)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """As jupyter_server: v1 where the client offers it, unless `kernel_ws_protocol` says otherwise."""
        preferred = self.settings.get("kernel_ws_protocol", V1)
        return V1 if preferred in (None, V1) and V1 in subprotocols else None

    def get_compression_options(self) -> dict[str, Any] | None:
        return self.settings.get("websocket_compression_options")

    def open(self, kernel_id: str) -> None:
        """The client is served from here on; nothing is waited for."""
        assert self.relay is not None
        self.set_nodelay(True)  # or Nagle's algorithm and delayed acknowledgements cost 40 ms a cell
        self._connection = self.ws_connection
        self._v1 = self.selected_subprotocol == V1
        self._rates = RateLimiter(self._rate_limits())
        self._limited = bool(self.settings.get("limit_rate", True)) and self._rate_limits().any
        self._allowed = frozenset(self.kernel_manager.allowed_message_types)
        self._masked = not self.kernel_manager.allow_tracebacks
        self._most_unsent = int(self.settings.get("eg_channels_unsent_bytes", _DEFAULT_UNSENT_BYTES))
        self._start_pings()
        self.kernel_manager.notify_connect(kernel_id)
        try:
            self.relay.connect(self)
        except ChannelError as error:
            log.error("Kernel %s: a client cannot be served: %s", kernel_id, error.message)
            self.close(CLOSE_UNUSABLE, error.message[:120])

    def on_close(self) -> None:
        """Also when the handshake failed, and when the connection was replaced or ended before."""
        self._count_out()
        if self.relay is not None:
            self.relay.disconnect(self, self._take_unsent())

    def _count_out(self) -> None:
        """This connection serves nobody any more, however long its closing takes."""
        if self._keepalive is not None and self.relay is not None:
            self._keepalive.stop()
            self._keepalive = None
            self.kernel_manager.notify_disconnect(self.relay.kernel_id)

    # From the client

    def on_message(self, frame: str | bytes) -> None:
        """Relay one frame. What cannot be read is ignored, with a warning now and then."""
        try:
            channel, message = decode_v1(frame) if self._v1 else decode_legacy(frame)
            if self._allowed and message.kind not in self._allowed:
                raise ChannelError("A message is of a type that this gateway does not allow.")
        except ChannelError as error:
            self._bad_frames += 1
            now = time.monotonic()
            if now - self._complained > _COMPLAINT_INTERVAL:
                self._complained = now
                log.warning("Ignored a frame from a client (%d so far): %s", self._bad_frames, error.message)
            return
        if self.relay is not None:
            self.relay.receive(self, channel, message)

    # To the client

    def deliver(self, channel: str, message: Message) -> bool:
        """See RelayClient."""
        connection = self.ws_connection
        if connection is None or connection.is_closing():
            return False
        if channel == "iopub" and self._limited and not self._within_rate(message):
            return True
        if self._masked:
            message = self._mask(channel, message)
        try:
            payload, binary = (encode_v1(channel, message), True) if self._v1 else encode_legacy(channel, message)
        except ChannelError as error:
            log.warning("A message of a kernel was not relayed: %s", error.message)
            return True
        if self._unsent_size > self._most_unsent:
            log.warning("A client does not read: %d bytes wait for it. It is disconnected.", self._unsent_size)
            self.end(code=CLOSE_TOO_SLOW, reason=f"More than {self._most_unsent} bytes were waiting for this client.")
            return False
        self._write(connection, (channel, message), payload, binary)
        return True

    def supersede(self) -> Sequence[synthetic.Entry]:
        """See RelayClient. Frames that wait in this connection are taken from it; then it can only be cut."""
        self._count_out()
        unsent = self._take_unsent()
        if unsent and self._connection is not None:
            self._connection.on_connection_close()
        else:
            self.close(CLOSE_REPLACED, "Another connection of the same session took over.")
        return unsent

    def end(self, *, code: int, reason: str) -> None:
        """See RelayClient."""
        self._count_out()
        self.close(code, reason)

    def _write(self, connection: Any, entry: synthetic.Entry, payload: bytes, binary: bool) -> None:
        """What write_message does, without a task and a copy for every message; and what waits is known by name."""
        try:
            if connection._compressor is not None:
                sent = connection.write_message(payload, binary=binary)
            else:
                sent = connection.stream.write(_frame_header(len(payload), binary) + payload)
        except (iostream.StreamClosedError, websocket.WebSocketClosedError):
            self._unsent.append((entry, 0, None))
            return
        if connection.stream.closed():  # it broke while it was being written to
            self._unsent.append((entry, 0, None))
        elif connection.stream.writing():
            self._unsent.append((entry, len(payload), sent))
            self._unsent_size += len(payload)
            sent.add_done_callback(self._written)

    def _written(self, _: Any) -> None:
        """Forget frames that have left. Those of a connection that broke stay listed: the next connection gets them."""
        while self._unsent and _has_left(self._unsent[0][2]):
            self._unsent_size -= self._unsent.popleft()[1]

    def _take_unsent(self) -> tuple[synthetic.Entry, ...]:
        """What has not left, the frame that has left in part included; it can only be sent again when this connection is cut."""
        unsent = tuple(entry for entry, _, sent in self._unsent if not _has_left(sent))
        self._unsent.clear()
        self._unsent_size = 0
        return unsent

    def _within_rate(self, message: Message) -> bool:
        kind = message.kind
        if kind == "status" and b'"idle"' in message.parts[3]:
            self._rates.reset()
        verdict = self._rates.count(kind=kind, size=message.size, now=time.monotonic())
        if verdict.notice is not None:
            log.warning("Output of kernel %s is held back: %s", self.path_kwargs["kernel_id"], verdict.notice.splitlines()[0])
            session = str(message.header.get("session", ""))
            channel, notice = synthetic.stderr(verdict.notice, session=session, parent=message.parts[1])
            limited, self._limited = self._limited, False
            self.deliver(channel, notice)
            self._limited = limited
        return verdict.passes

    def _mask(self, channel: str, message: Message) -> Message:
        """Without tracebacks, when the operator wants none: of errors on iopub, and of the replies that repeat them."""
        if message.kind != "error" and not (channel == "shell" and message.kind == "execute_reply"):
            return message
        try:
            content = dict(message.content())
        except ChannelError:
            return message
        if message.kind == "execute_reply" and content.get("status") != "error":
            return message
        replacement = self.kernel_manager.traceback_replacement_message
        content.update(ename="ExecutionError", evalue="Execution error", traceback=[replacement])
        return Message((*message.parts[:3], pack(content), *message.parts[4:]))

    def _rate_limits(self) -> RateLimits:
        return RateLimits(
            messages=float(self.settings.get("iopub_msg_rate_limit", 0)),
            size=float(self.settings.get("iopub_data_rate_limit", 0)),
            window=float(self.settings.get("rate_limit_window", 1.0)),
        )

    # Keep-alive

    def _start_pings(self) -> None:
        """Every `ws_ping_interval` ms (0: never); without a pong for `ws_ping_timeout` ms (three intervals, 30 s at least) it is
        closed.
        """
        interval = self.settings.get("ws_ping_interval", WS_PING_INTERVAL)
        self._pong_limit = self.settings.get("ws_ping_timeout", max(3 * interval, WS_PING_INTERVAL)) / 1000
        self._last_pong = IOLoop.current().time()
        self._keepalive = PeriodicCallback(self._ping, interval or WS_PING_INTERVAL)
        if interval > 0:
            self._keepalive.start()

    def _ping(self) -> None:
        if self.ws_connection is None or self.ws_connection.is_closing():
            return
        silent = IOLoop.current().time() - self._last_pong
        if silent > self._pong_limit:
            log.warning("A client did not answer pings for %.0f s. It is disconnected.", silent)
            self.close(CLOSE_TOO_SLOW, "No answer to pings.")
            return
        self.ping(b"")

    def on_pong(self, data: bytes) -> None:
        self._last_pong = IOLoop.current().time()


def _has_left(sent: Any) -> bool:
    return sent is not None and sent.done() and not sent.cancelled() and sent.exception() is None


def _frame_header(length: int, binary: bool) -> bytes:
    """RFC 6455, section 5.2: final frame, not masked."""
    first = 0x82 if binary else 0x81
    if length < 126:
        return struct.pack("!BB", first, length)
    if length <= 0xFFFF:
        return struct.pack("!BBH", first, 126, length)
    return struct.pack("!BBQ", first, 127, length)
