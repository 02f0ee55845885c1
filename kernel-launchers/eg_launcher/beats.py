"""The stream of beats to one reader: at once, every interval, and soon after each change.

A reader that does not read is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib

from tornado import httputil, iostream

from eg_launcher.launcher import Launcher

LARGEST_BACKLOG = 1024 * 1024
# Changes that follow each other (busy, idle) share a beat; the protocol promises 50 ms.
_COALESCE_SECONDS = 0.025


async def stream_beats(launcher: Launcher, connection: httputil.HTTPConnection, *, interval_seconds: float) -> None:
    """Send beats until the reader is gone or the launcher ends."""
    changed = asyncio.Event()
    closed = asyncio.Event()
    on_close = getattr(connection, "set_close_callback", None)
    if on_close is not None:

        def note_close() -> None:
            closed.set()
            changed.set()

        on_close(note_close)
    launcher.status.listeners.add(changed)
    backlog = 0
    sequence = 0

    def written(size: int) -> None:
        nonlocal backlog
        backlog -= size

    try:
        headers = httputil.HTTPHeaders({"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
        first = connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 200, "OK"), headers)
        first.add_done_callback(lambda future: future.exception())
        while not closed.is_set():
            changed.clear()
            sequence += 1
            beat = launcher.beat()
            line = beat.as_line(sequence=sequence)
            backlog += len(line)
            if backlog > LARGEST_BACKLOG:
                break
            future = connection.write(line)

            def done(future: asyncio.Future[None], size: int = len(line)) -> None:
                future.exception()
                written(size)

            future.add_done_callback(done)
            if beat.state == "stopping" or (beat.state == "failed" and beat.claim_id is None):
                break
            await asyncio.sleep(_COALESCE_SECONDS)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), max(0.0, interval_seconds - _COALESCE_SECONDS))
    finally:
        launcher.status.listeners.discard(changed)
        with contextlib.suppress(iostream.StreamClosedError, httputil.HTTPOutputError):
            connection.finish()
        if backlog > LARGEST_BACKLOG:
            stream = getattr(connection, "stream", None)
            if stream is not None:
                stream.close()
