"""jupyter_server's limits on the rate of a kernel's output, for one client.

It exists so that `iopub_msg_rate_limit`, `iopub_data_rate_limit` and `rate_limit_window` keep their meaning behind the relay.
Pure: the clock is the caller's. As there, only `stream` messages count bytes, and status, comm_open and execute_input count
nothing.
"""

from __future__ import annotations

import dataclasses
from collections import deque

_UNCOUNTED = frozenset({"status", "comm_open", "execute_input"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateLimits:
    """Messages and bytes a second, averaged over `window` seconds; 0: no limit."""

    messages: float = 0
    size: float = 0
    window: float = 1.0

    @property
    def any(self) -> bool:
        """Is there anything to count?"""
        return self.messages > 0 or self.size > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """`passes`: send the message. `notice`: what to tell the client on standard error, once for every time a limit is passed."""

    passes: bool
    notice: str | None = None


_PASSES = Verdict(passes=True)


class RateLimiter:
    """Counts what one client is sent."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._window: deque[tuple[float, int]] = deque()
        self._size = 0
        self._exceeded: set[str] = set()

    def reset(self) -> None:
        """The kernel is idle: "run all" starts every cell with a clean count."""
        self._window.clear()
        self._size = 0
        self._exceeded.clear()

    def count(self, *, kind: str, size: int, now: float) -> Verdict:
        """Take one iopub message into account. `now` in seconds, monotonic."""
        if kind in _UNCOUNTED or not self._limits.any:
            return _PASSES
        while self._window and now >= self._window[0][0]:
            self._size -= self._window.popleft()[1]
        size = size if kind == "stream" else 0
        notice = None
        rates = (
            ("message", "msg", (len(self._window) + 1) / self._limits.window, self._limits.messages, "msgs/sec"),
            ("data", "data", (self._size + size) / self._limits.window, self._limits.size, "bytes/sec"),
        )
        for word, option, rate, limit, unit in rates:
            if limit > 0 and rate > limit:
                if word not in self._exceeded:
                    self._exceeded.add(word)
                    notice = _notice(word, option, limit, unit, self._limits.window)
            elif rate < 0.8 * limit:
                self._exceeded.discard(word)
        if self._exceeded:
            return Verdict(passes=False, notice=notice)
        self._window.append((now + self._limits.window, size))
        self._size += size
        return _PASSES


def _notice(word: str, option: str, limit: float, unit: str, window: float) -> str:
    return (
        f"IOPub {word} rate exceeded.\nThe gateway will temporarily stop sending output\nto the client "
        "in order to avoid crashing it.\n"
        f"To change this limit, set the tornado setting\n`iopub_{option}_rate_limit`.\n\nCurrent values:\n"
        f"iopub_{option}_rate_limit={limit:g} ({unit})\nrate_limit_window={window:g} (secs)\n"
    )
