"""How often each kernelspec is claimed, and how long its members take to boot: what the sizing policy decides from.

Both are kept as exponentially decayed sums, so that memory is constant and a burst of last week weighs nothing. It does not
forecast: a kernelspec that is used at nine every morning is learned by the claims of that morning.
"""

from __future__ import annotations

import dataclasses
import math

DECAY_SECONDS = 7_200.0
"""Time constant of the claim rate: two hours, the best of the decays tried on Binder's traces (65.5 % hits at five
slots for 778 kernelspecs)."""

SHORTEST_SPAN_SECONDS = 900.0
"""A rate is taken over at least a quarter of an hour, or the first claim after a start would look like a storm."""

ASSUMED_BOOT_SECONDS = 2.0
"""Boot time assumed until one was measured: a Python kernel on an idle machine takes 0.5 to 1.1 s, a pod with its image
present about 2."""

_BOOT_WEIGHT = 0.3


@dataclasses.dataclass
class ClaimHistory:
    """The history of one kernelspec. `since` and every `now`: seconds on one monotonic clock."""

    since: float
    boot_seconds: float = ASSUMED_BOOT_SECONDS
    _weight: float = 0.0
    _at: float = 0.0
    _boots: int = 0

    def claimed(self, now: float) -> None:
        """Record one claim, served warm or not."""
        self._weight = self._decayed(now) + 1.0
        self._at = now

    def booted(self, seconds: float) -> None:
        """Record how long one member took from its start until it was ready."""
        self._boots += 1
        weight = 1.0 if self._boots == 1 else _BOOT_WEIGHT
        self.boot_seconds += weight * (seconds - self.boot_seconds)

    def rate(self, now: float) -> float:
        """Claims per second, recent ones weighing most.

        The sum of weights is divided by what a steady rate of one per second would have summed up to in the time
        observed, so that a young history is not taken for a quiet one.
        """
        observed = max(now - self.since, SHORTEST_SPAN_SECONDS)
        return self._decayed(now) / (DECAY_SECONDS * -math.expm1(-observed / DECAY_SECONDS))

    def _decayed(self, now: float) -> float:
        return self._weight * math.exp(-max(0.0, now - self._at) / DECAY_SECONDS)
