"""Starts and stops that were issued and that the world does not show yet.

A pool that compares "wanted" with what it sees starts the same missing member again and again while the view lags
(agent-sandbox over-created about tenfold that way). So every start and stop is recorded here *before* it is issued, and
counts until it is observed. An expectation that is never observed (the answer was lost) expires, or the pool would wait
for it for ever: after that time a duplicate is possible, and cheaper than a pool that stays empty. Nothing here does
I/O; the clock is injected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Expectation:
    group: str
    until: float


class Expectations:
    """Outstanding starts and stops, by member name, each in a group (the substrate's name).

    `timeout_seconds`: after so long an expectation is dropped. `clock`: monotonic seconds.
    """

    def __init__(self, *, timeout_seconds: float, clock: Callable[[], float]) -> None:
        self._timeout = timeout_seconds
        self._clock = clock
        self._starts: dict[str, _Expectation] = {}
        self._stops: dict[str, _Expectation] = {}

    def expect_start(self, *, name: str, group: str) -> None:
        """Record a start that is about to be issued."""
        self._starts[name] = _Expectation(group=group, until=self._clock() + self._timeout)

    def expect_stop(self, *, name: str, group: str) -> None:
        """Record a stop that is about to be issued. A start that it overtakes is no longer expected."""
        self._starts.pop(name, None)
        self._stops[name] = _Expectation(group=group, until=self._clock() + self._timeout)

    def start_observed(self, name: str) -> None:
        """The member exists, or its start has failed."""
        self._starts.pop(name, None)

    def stop_observed(self, name: str) -> None:
        """The member is gone."""
        self._stops.pop(name, None)

    def stop_expected(self, name: str) -> bool:
        """True when the member's end is no surprise."""
        self._expire()
        return name in self._stops

    def starts(self, group: str) -> int:
        """How many starts of the group are on their way."""
        self._expire()
        return sum(expectation.group == group for expectation in self._starts.values())

    def stops(self, group: str) -> int:
        """How many stops of the group are on their way."""
        self._expire()
        return sum(expectation.group == group for expectation in self._stops.values())

    def _expire(self) -> None:
        now = self._clock()
        for table in (self._starts, self._stops):
            for name in [name for name, expectation in table.items() if expectation.until <= now]:
                del table[name]
