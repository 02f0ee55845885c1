"""A kernel's output: forwarded to the launcher's own, its end kept for the message that says why the kernel died.

Forwarding never blocks: when the launcher's standard error is a full pipe, output is dropped rather than the event loop stopped.
"""

from __future__ import annotations

import asyncio
import os
import select

TAIL_BYTES = 4096
_ATOMIC = 4096  # a pipe that is writable takes this much without blocking


class OutputTail:
    """Reads a pipe on the event loop until its end. `write_fd` goes to the kernel; close it with `started`."""

    def __init__(self) -> None:
        self._read_fd, self.write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        self._tail = bytearray()
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._read_fd, self._on_readable)

    def started(self) -> None:
        """The kernel has its copy of the write end; give ours up. Idempotent."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def text(self) -> str:
        """The last lines, at most 4 KiB."""
        self._on_readable()
        text = bytes(self._tail).decode("utf-8", "replace").strip()
        return text.encode()[-TAIL_BYTES:].decode("utf-8", "ignore")

    def close(self) -> None:
        """Stop reading. Idempotent."""
        self.started()
        if self._open:
            self._open = False
            self._loop.remove_reader(self._read_fd)
            os.close(self._read_fd)

    def _on_readable(self) -> None:
        # A bounded number of chunks at a time: a kernel that floods must not keep the loop.
        for _ in range(16):
            if not self._open:
                return
            try:
                data = os.read(self._read_fd, _ATOMIC)
            except BlockingIOError:
                return
            if not data:
                self.close()
                return
            self._tail += data
            del self._tail[:-TAIL_BYTES]
            forward(data)


def forward(data: bytes) -> None:
    """Write at most 4 KiB to standard error, if that can be done without waiting."""
    poller = select.poll()
    poller.register(2, select.POLLOUT)
    try:
        if poller.poll(0):
            os.write(2, data[:_ATOMIC])
    except OSError:
        return  # nobody reads our output; that is no reason to stop
