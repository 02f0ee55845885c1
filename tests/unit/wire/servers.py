"""A server that answers with given bytes, for the faults that a real launcher never shows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


class FakeLauncher:
    """Reads one request a connection, keeps it, and lets a script answer."""

    def __init__(self, script: Script) -> None:
        self.requests: list[bytes] = []
        self.script = script
        self.address = ""
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
                self.requests.append(head + await reader.readexactly(length))
                await self.script(self.requests[-1], writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.serving.discard(task)


@contextlib.asynccontextmanager
async def fake_launcher(directory: Path, script: Script) -> AsyncIterator[FakeLauncher]:
    """Serve `script` on a Unix socket in `directory`; what still runs of it at the end is cancelled."""
    fake = FakeLauncher(script)
    path = directory / "s"
    server = await asyncio.start_unix_server(fake.serve, path)
    fake.address = f"unix:{path}"
    try:
        yield fake
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)
        for task in list(fake.serving):
            task.cancel()
        if fake.serving:
            await asyncio.wait(fake.serving)


def saying(*pieces: bytes, pause: float = 0.0) -> Script:
    """A script that writes these pieces and closes."""

    async def script(_: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return script


def answer(body: bytes, *, status: bytes = b"200 OK") -> bytes:
    """A whole HTTP answer."""
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
