"""A WebSocket client made of a TCP socket, so that a test decides what is read, when, and how the connection ends."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
import uuid
from itertools import pairwise
from typing import Any


class RawClient:
    """One connection. Frames are masked, as a client must."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session_id: str) -> None:
        self.reader = reader
        self.writer = writer
        self.session_id = session_id
        self.close_code: int | None = None
        self.answers_pings = True
        self.subprotocol: str | None = None

    @classmethod
    async def begin(
        cls, url: str, *, session_id: str, subprotocol: str | None = None, receive_buffer: int | None = None
    ) -> RawClient:
        """Send the handshake without waiting for the answer."""
        host, port = url.split("//")[1].split("/")[0].split(":")
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
        path = "/" + url.split("//")[1].split("/", 1)[1]
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path}?session_id={session_id} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        if subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return cls(reader, writer, session_id)

    async def accepted(self) -> RawClient:
        """Read the answer to the handshake; it must be 101."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        if not head.startswith(b"HTTP/1.1 101"):
            self.writer.transport.abort()
            await asyncio.sleep(0)
            raise AssertionError(head[:200].decode())
        for line in head.decode().split("\r\n"):
            if line.lower().startswith("sec-websocket-protocol:"):
                self.subprotocol = line.split(":", 1)[1].strip()
        return self

    @classmethod
    async def open(cls, url: str, **options: Any) -> RawClient:
        return await (await cls.begin(url, **options)).accepted()

    def send_frame(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length <= 0xFFFF:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        mask = os.urandom(4)
        stretched = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
        masked = (int.from_bytes(payload, "big") ^ stretched).to_bytes(length, "big")
        self.writer.write(head + mask + masked)

    def message(
        self, kind: str, content: dict[str, Any], *, channel: str = "shell", parent: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": kind,
            "username": "test",
            "session": self.session_id,
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
        }
        own = {"header": header, "parent_header": parent or {}, "metadata": {}, "content": content}
        return own | {"channel": channel, "buffers": []}

    def request(self, kind: str, content: dict[str, Any], *, channel: str = "shell", parent: dict[str, Any] | None = None) -> str:
        """Send one message in the JSON subprotocol; its msg_id."""
        message = self.message(kind, content, channel=channel, parent=parent)
        self.send_frame(1, json.dumps(message).encode())
        return str(message["header"]["msg_id"])

    def execute(self, code: str, **options: Any) -> str:
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        return self.request("execute_request", content | {"stop_on_error": True} | options)

    async def receive_frame(self, timeout: float = 20.0) -> tuple[int, bytes] | None:
        """(opcode, payload); None when the connection is closed, with `close_code` set."""
        try:
            return await asyncio.wait_for(self._frame(), timeout)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _frame(self) -> tuple[int, bytes] | None:
        first, second = await self.reader.readexactly(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
        payload = await self.reader.readexactly(length)
        if first & 0x0F == 8:
            self.close_code = struct.unpack("!H", payload[:2])[0] if payload else None
            return None
        return first & 0x0F, payload

    async def receive(self, timeout: float = 20.0) -> dict[str, Any] | None:
        """The next message of the JSON subprotocol; None when the connection is closed."""
        while True:
            frame = await self.receive_frame(timeout)
            if frame is None:
                return None
            opcode, payload = frame
            if opcode == 9 and self.answers_pings:
                self.send_frame(10, payload)
            if opcode == 1:
                return json.loads(payload)
            if opcode == 2:
                (count,) = struct.unpack_from("!I", payload)
                offsets = [*struct.unpack_from(f"!{count}I", payload, 4), len(payload)]
                pieces = [payload[a:b] for a, b in pairwise(offsets)]
                return json.loads(pieces[0]) | {"buffers": pieces[1:]}

    async def until_done(self, request: str, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Everything up to the reply to `request` and its idle status."""
        seen: list[dict[str, Any]] = []
        reply = idle = False
        while not (reply and idle):
            message = await self.receive(timeout)
            assert message is not None, f"closed with {self.close_code} after {[m['msg_type'] for m in seen]}"
            seen.append(message)
            if message["parent_header"].get("msg_id") == request:
                reply = reply or message["channel"] in ("shell", "control")
                idle = idle or (message["msg_type"] == "status" and message["content"]["execution_state"] == "idle")
        return seen

    async def drain(self, quiet: float = 0.3) -> list[dict[str, Any]]:
        """Everything until nothing came for `quiet` seconds or the connection closed."""
        seen = []
        while True:
            try:
                message = await self.receive(quiet)
            except asyncio.TimeoutError:
                return seen
            if message is None:
                return seen
            seen.append(message)

    async def leave(self) -> list[dict[str, Any]]:
        """Close as a browser does: a close frame, then read until the other side has closed too."""
        self.send_frame(8, struct.pack("!H", 1001))
        seen = []
        while (message := await self.receive(10)) is not None:
            seen.append(message)
        self.writer.close()
        return seen

    def drop(self) -> None:
        """Be gone without a word (a reset)."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def text_of(messages: list[dict[str, Any]], request: str | None = None) -> str:
    """All stream text, of one request or of any."""
    return "".join(
        m["content"]["text"]
        for m in messages
        if m["msg_type"] == "stream" and (request is None or m["parent_header"].get("msg_id") == request)
    )
