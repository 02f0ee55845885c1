"""How fast the pool may start members: a token bucket for all of them, a growing pause for kernelspecs whose starts fail.

Clocks are injected; nothing sleeps here, the one loop asks when it may go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic seconds, unless the parameter says otherwise."""


class TokenBucket:
    """At most `rate` starts per second on average, and `burst` at once. `clock`: monotonic seconds."""

    def __init__(self, *, rate: float, burst: float, clock: Clock) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()

    def take(self) -> bool:
        """Take one token; False when there is none."""
        self._fill()
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def available(self) -> int:
        """How many tokens could be taken now."""
        self._fill()
        return int(self._tokens)

    def wait(self) -> float:
        """Seconds until the next token; 0 when there is one; infinity when there will never be one."""
        self._fill()
        if self._tokens >= 1.0:
            return 0.0
        return (1.0 - self._tokens) / self._rate if self._rate > 0 else float("inf")

    def _fill(self) -> None:
        now = self._clock()
        # A billionth is added so that waiting for exactly `wait()` seconds yields a whole token in binary fractions too.
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate + 1e-9)
        self._at = now


@dataclasses.dataclass
class BackOff:
    """The pause after failed starts of one kernelspec: 1 s, 2 s, 4 s, … up to five minutes.

    A start that succeeds does not end it, for a kernel may start well and die at once: `settled` does, which the pool
    calls when a member was claimed or stayed ready for a while.
    """

    first_seconds: float = 1.0
    longest_seconds: float = 300.0
    failures: int = 0
    failed_at: float = float("-inf")
    until: float = float("-inf")
    error: str | None = None

    def failed(self, *, now: float, error: str) -> None:
        """Record a failure at `now` (monotonic seconds), with the sentence that explains it."""
        pause = min(self.longest_seconds, self.first_seconds * 2.0 ** min(self.failures, 30))
        self.failures += 1
        self.failed_at = now
        self.until = now + pause
        self.error = error

    def settled(self) -> None:
        """Forget the failures."""
        self.failures = 0
        self.until = float("-inf")
        self.error = None

    def wait(self, now: float) -> float:
        """Seconds until the next start may be tried."""
        return max(0.0, self.until - now)
