"""Reaping: a launcher waits for every child, those that it adopted as subreaper or as PID 1 too.

One owner of SIGCHLD for the whole process: nothing else here may wait for a child (asyncio's subprocesses would lose theirs).
"""

from __future__ import annotations

import asyncio
import collections
import os
import signal

_REMEMBERED = 256


class Reaper:
    """Made on the event loop; `watch` gives a future of a child's wait status."""

    def __init__(self) -> None:
        self._watched: dict[int, asyncio.Future[int]] = {}
        # A child may end before anybody learned its number (a fork by the zygote).
        self._early: collections.OrderedDict[int, int] = collections.OrderedDict()

    def start(self) -> None:
        """Take SIGCHLD over."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)
        self._reap()

    def stop(self) -> None:
        """Give SIGCHLD back."""
        asyncio.get_running_loop().remove_signal_handler(signal.SIGCHLD)

    def watch(self, pid: int) -> asyncio.Future[int]:
        """A future of the child's wait status (see `os.WIFEXITED`). Each child once."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        status = self._early.pop(pid, None)
        if status is not None:
            future.set_result(status)
        else:
            self._watched[pid] = future
        return future

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._watched.pop(pid, None)
            if future is None:
                self._early[pid] = status
                while len(self._early) > _REMEMBERED:
                    self._early.popitem(last=False)
            elif not future.done():
                future.set_result(status)
