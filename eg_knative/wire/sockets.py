"""Four ZeroMQ sockets on the asyncio event loop, without ZMQStream.

It exists because a message that passes ZMQStream's queues and callbacks costs more than its relaying. ZeroMQ's descriptor is
edge-triggered: it wakes the loop once, and any call on the socket may swallow the wake-up. Every path here therefore ends with
reading until nothing is left, or with a look at EVENTS. It does not promise fairness beyond `_BATCH` messages a turn.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import CHANNELS

if TYPE_CHECKING:
    from eg_knative.wire.control import ConnectionInfo

log = logging.getLogger(__name__)

_BATCH = 64
_RECONNECT_MILLISECONDS = 5  # ZeroMQ adds up to as much again: a kernel that binds its ports a little late is found within 10 ms
_MOST_RECONNECT_MILLISECONDS = 500  # doubling up to this: every try at a free ephemeral port may connect to itself
_SEND_QUEUE = 1_000
_RECEIVE_QUEUE = 10_000  # a kernel drops output for a subscriber whose queue is full; 1,000, the default, is soon full
_MAXIMUM_FRAME_BYTES = 512 * 1024**2


class Sockets:
    """`receive(channel, frames)` is called for every message, `writable()` when a socket that was full takes messages again."""

    def __init__(
        self,
        *,
        context: zmq.Context[zmq.Socket[bytes]],
        identity: bytes,
        receive: Callable[[str, list[bytes]], None],
        writable: Callable[[], None],
    ) -> None:
        self._context = context
        self._identity = identity
        self._receive = receive
        self._writable = writable
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._full = False

    @property
    def closed(self) -> bool:
        """Nothing is connected."""
        return not self._sockets

    def connect(self, connection: ConnectionInfo) -> None:
        """Replace whatever is connected. Raises ChannelError: the address is unusable, or no socket is left in the context."""
        self.close()
        loop = asyncio.get_running_loop()
        try:
            for channel in CHANNELS:
                socket = self._context.socket(zmq.SUB if channel == "iopub" else zmq.DEALER)
                self._sockets[channel] = socket
                socket.linger = 0
                socket.set(zmq.RECONNECT_IVL, _RECONNECT_MILLISECONDS)
                socket.set(zmq.RECONNECT_IVL_MAX, _MOST_RECONNECT_MILLISECONDS)
                socket.set(zmq.MAXMSGSIZE, _MAXIMUM_FRAME_BYTES)
                socket.set(zmq.RCVHWM, _RECEIVE_QUEUE)
                socket.set(zmq.SNDHWM, _SEND_QUEUE)
                socket.set(zmq.IDENTITY, self._identity)
                if channel == "iopub":
                    socket.set(zmq.SUBSCRIBE, b"")
                socket.connect(_url(connection, getattr(connection, f"{channel}_port")))
                loop.add_reader(socket.fileno(), self._drain, channel, socket)
        except zmq.ZMQError as error:
            self.close()
            remedy = " Raise EG_ZMQ_MAX_SOCKETS." if error.errno == errno.EMFILE else ""
            raise ChannelError(f"The kernel's channels cannot be connected: {error.strerror}.{remedy}") from error

    def close(self) -> None:
        """Idempotent."""
        sockets, self._sockets = self._sockets, {}
        for socket in sockets.values():
            if not socket.closed:
                asyncio.get_running_loop().remove_reader(socket.fileno())
                socket.close(linger=0)

    def send(self, channel: str, frames: list[bytes]) -> bool:
        """False when the socket's queue is full, or when nothing is connected."""
        socket = self._sockets.get(channel)
        if socket is None:
            return False
        try:
            socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=True)
        except zmq.Again:
            self._full = True
            return False
        finally:
            if _events(socket) & zmq.POLLIN:  # sending may have swallowed the wake-up
                asyncio.get_running_loop().call_soon(self._drain, channel, socket)
        return True

    def read_all(self) -> None:
        """Receive now what has already arrived (at most a batch of each channel)."""
        for channel, socket in list(self._sockets.items()):
            self._drain(channel, socket)

    def _drain(self, channel: str, socket: zmq.Socket[bytes]) -> None:
        for _ in range(_BATCH):
            if self._sockets.get(channel) is not socket:  # closed or replaced, perhaps by the message before
                return
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                self._receive(channel, frames)
            except Exception:  # whoever listens must not stop the reading: the descriptor would not wake us again
                log.exception("A message on %s could not be handled", channel)
        else:
            asyncio.get_running_loop().call_soon(self._drain, channel, socket)
            return
        if self._full and _events(socket) & zmq.POLLOUT:
            self._full = False
            self._writable()


def _events(socket: zmq.Socket[bytes]) -> int:
    return int(socket.get(zmq.EVENTS))


def _url(connection: ConnectionInfo, port: int) -> str:
    if connection.transport == "tcp":
        host = f"[{connection.ip}]" if ":" in connection.ip else connection.ip
        return f"tcp://{host}:{port}"
    return f"{connection.transport}://{connection.ip}-{port}"
