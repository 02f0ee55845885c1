"""The TCP port on which launchers of stock Enterprise Gateway images report where their kernel is about to listen.

It exists because Enterprise Gateway's own blocks the event loop for 5 ms at every tick and lets one idle client stop every
launch. Here a connection is one small object, bounded in time and bytes; all together are bounded in number; nothing is decoded
before its sender has finished. It does not promise that a payload comes from the kernel that it names (`eg_payload` says why),
and it never logs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import OrderedDict
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import rsa

from eg_knative.wire.eg_payload import PayloadError, decode_payload
from eg_knative.wire.waiting_launches import WaitingLaunches

READ_TIMEOUT_SECONDS = 10.0
"""From connect to the sender's close. A launcher does all of it at once; ten seconds are far beyond a slow network."""
SIZE_LIMIT_BYTES = 64 * 1024
"""A payload is about 900 bytes."""
CONNECTION_LIMIT = 256
_ACCEPTS_PER_TICK = 16
_ACCEPT_QUEUE = 512
_SECONDS_BETWEEN_WARNINGS = 1.0


class PushListener:
    """Serves one bound socket and delivers each good payload to the launch that waits for it.

    Belongs to one event loop. `log` gets at most one line a second about refused connections, with counts and reasons only.
    """

    def __init__(
        self,
        *,
        bound_socket: socket.socket,
        private_key: rsa.RSAPrivateKey,
        launches: WaitingLaunches,
        log: logging.Logger | logging.LoggerAdapter[Any],
        read_timeout: float = READ_TIMEOUT_SECONDS,
        size_limit: int = SIZE_LIMIT_BYTES,
        connection_limit: int = CONNECTION_LIMIT,
    ) -> None:
        self.read_timeout = read_timeout
        self.size_limit = size_limit
        self._socket = bound_socket
        self._private_key = private_key
        self._launches = launches
        self._log = log
        self._connection_limit = connection_limit
        self._connections: OrderedDict[_Connection, None] = OrderedDict()  # least recently heard first
        self._server: asyncio.AbstractServer | None = None
        self._refused = 0
        self._warned_at = float("-inf")

    async def start(self) -> None:
        """Begin accepting. Senders that connected since the socket was bound have been waiting in its queue."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        # asyncio accepts up to `backlog` connections before anything else runs: a flood must not hold the loop that long.
        self._server = await loop.create_server(lambda: _Connection(self), sock=self._socket, backlog=_ACCEPTS_PER_TICK)
        self._socket.listen(_ACCEPT_QUEUE)

    async def close(self) -> None:
        """Stop accepting and drop what is connected. Repeated calls do nothing more."""
        server, self._server = self._server, None
        if server is None:
            self._socket.close()
            return
        server.close()
        for connection in tuple(self._connections):
            connection.abort()
        await server.wait_closed()
        await asyncio.sleep(0)  # one turn of the loop, in which the dropped transports close their sockets

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    def opened(self, connection: _Connection) -> None:
        """A connection was made: room for it is taken from the one that has been silent longest."""
        self._connections[connection] = None
        if len(self._connections) > self._connection_limit:
            quietest = next(iter(self._connections))
            self.closed(quietest)
            quietest.abort()
            self.refuse("too many connections at once, the one silent longest was dropped")

    def heard(self, connection: _Connection) -> None:
        """A connection sent something."""
        if connection in self._connections:
            self._connections.move_to_end(connection)

    def closed(self, connection: _Connection) -> None:
        """A connection is over."""
        self._connections.pop(connection, None)

    def complete(self, data: bytes) -> None:
        """A sender has finished."""
        try:
            information = decode_payload(data, private_key=self._private_key, waiting=self._launches)
        except PayloadError as error:
            self.refuse(error.message)
            return
        self._launches.deliver(information)
        self._log.debug("The launcher of kernel %s has answered.", information["kernel_id"])

    def refuse(self, why: str) -> None:
        """Count a refused connection and say so, rarely."""
        self._refused += 1
        now = time.monotonic()
        if now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._log.warning("Refused %d connection(s) on the response port since the last warning: %s", self._refused, why)
            self._warned_at = now
            self._refused = 0


class _Connection(asyncio.Protocol):
    def __init__(self, listener: PushListener) -> None:
        self._listener = listener
        self._data = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._deadline = asyncio.get_running_loop().call_later(self._listener.read_timeout, self._expired)
        self._listener.opened(self)

    def data_received(self, data: bytes) -> None:
        if len(self._data) + len(data) > self._listener.size_limit:
            self.abort()
            self._listener.refuse(f"more than {self._listener.size_limit} bytes")
            return
        self._data += data
        self._listener.heard(self)

    def eof_received(self) -> bool:
        if self._data:  # a port scan or a probe connects and closes: not worth a warning
            self._listener.complete(bytes(self._data))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._listener.closed(self)

    def abort(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(OSError):
                self._transport.abort()

    def _expired(self) -> None:
        self.abort()
        self._listener.refuse(f"nothing complete within {self._listener.read_timeout:g} s")
