"""Frames on a socketpair: four bytes of length, then one JSON object; descriptors ride on the length.

Zygote, kernel and launcher talk over inherited Unix stream sockets with these. The blocking half serves the single-threaded
sides (zygote, a kernel that boots), the asyncio half the launcher and whoever holds a nursery. What arrives is checked for
size and for being a JSON object, nothing more: schema is the reader's business. It does not resynchronise after an error; close.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from eg_launcher.errors import FramingError

# Room for a promotion (1 MiB of environment) over a base environment of the same size, as JSON escapes it.
LARGEST_FRAME = 8 * 1024 * 1024
# A kernel says little; what comes from it is not trusted to stay small.
LARGEST_FROM_KERNEL = 64 * 1024

_LENGTH = struct.Struct(">I")
_MOST_DESCRIPTORS = 4


def _encode(message: Mapping[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LARGEST_FRAME:
        raise FramingError(f"A message of {len(body)} bytes is larger than {LARGEST_FRAME}")
    return _LENGTH.pack(len(body)) + body


def _decode(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FramingError("A frame was not JSON") from error
    if not isinstance(message, dict):
        raise FramingError("A frame was not a JSON object")
    return message


def _length(head: bytes, limit: int) -> int:
    length: int = _LENGTH.unpack(head)[0]
    if length > limit:
        raise FramingError(f"A frame of {length} bytes is larger than {limit}")
    return length


def _ancillary(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]


def send(sock: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one frame; blocks. Raises FramingError, OSError."""
    data = _encode(message)
    sent = sock.sendmsg([data], _ancillary(descriptors))
    if sent < len(data):
        sock.sendall(data[sent:])


def receive(sock: socket.socket, *, limit: int = LARGEST_FRAME) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one frame; blocks. The message is None at end of file. The caller owns the descriptors (close-on-exec).

    Raises FramingError, OSError.
    """
    head, descriptors = _receive_head(sock)
    if not head:
        return None, descriptors
    try:
        while len(head) < _LENGTH.size:
            more = sock.recv(_LENGTH.size - len(head))
            if not more:
                raise FramingError("The other side went away in the middle of a frame")
            head += more
        length = _length(head, limit)
        body = bytearray()
        while len(body) < length:
            more = sock.recv(min(length - len(body), 1 << 20))
            if not more:
                raise FramingError("The other side went away in the middle of a frame")
            body += more
        return _decode(bytes(body)), descriptors
    except (FramingError, OSError):
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _receive_head(sock: socket.socket) -> tuple[bytes, list[int]]:
    integers = array.array("i")
    room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * integers.itemsize)
    # MSG_CMSG_CLOEXEC (Linux): nothing that arrives here leaks into a user's subprocess.
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    head, ancillary, _, _ = sock.recvmsg(_LENGTH.size, room, flags)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            integers.frombytes(data[: len(data) - len(data) % integers.itemsize])
    for descriptor in integers:
        os.set_inheritable(descriptor, False)
    return head, list(integers)


class Channel:
    """The asyncio half, over a non-blocking socket that it owns. One reader, one writer at a time."""

    def __init__(self, sock: socket.socket, *, limit: int = LARGEST_FRAME) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._limit = limit
        self._writing = asyncio.Lock()

    async def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one frame. Raises FramingError, OSError. Cancelling it spoils the channel: close it then."""
        data = _encode(message)
        loop = asyncio.get_running_loop()
        async with self._writing:
            while True:
                try:
                    sent = self._socket.sendmsg([data], _ancillary(descriptors))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.001)  # descriptors must ride on the first bytes; a full socketpair is rare
            if sent < len(data):
                await loop.sock_sendall(self._socket, data[sent:])

    async def receive(self) -> dict[str, Any] | None:
        """The next frame, None at end of file. Raises FramingError, OSError."""
        head = await self._exactly(_LENGTH.size)
        if head is None:
            return None
        body = await self._exactly(_length(head, self._limit))
        if body is None:
            raise FramingError("The other side went away in the middle of a frame")
        return _decode(body)

    async def _exactly(self, count: int) -> bytes | None:
        loop = asyncio.get_running_loop()
        data = bytearray()
        while len(data) < count:
            more = await loop.sock_recv(self._socket, min(count - len(data), 1 << 16))
            if not more:
                if data:
                    raise FramingError("The other side went away in the middle of a frame")
                return None
            data += more
        return bytes(data)

    def close(self) -> None:
        """Close the socket; idempotent. No reader may be waiting (cancel it first)."""
        self._socket.close()
