"""The token bucket and the back-off, by their values."""

from __future__ import annotations

import pytest

from eg_knative.pool.pacing import BackOff, TokenBucket


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate=2.0, burst=3.0, clock=clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    assert bucket.wait() == pytest.approx(0.5)
    clock.now += bucket.wait()
    assert bucket.take()
    assert not bucket.take()
    clock.now += 100
    assert bucket.available() == 3


def test_waiting_exactly_as_told_is_enough() -> None:
    clock = FakeClock()
    bucket = TokenBucket(rate=3.0, burst=1.0, clock=clock)
    for _ in range(1000):
        assert bucket.take()
        clock.now += bucket.wait()


def test_a_rate_of_nothing_never_gives_another() -> None:
    bucket = TokenBucket(rate=0.0, burst=0.0, clock=FakeClock())
    assert bucket.take()
    assert bucket.wait() == float("inf")


def test_the_pause_doubles_to_its_longest() -> None:
    back_off = BackOff(first_seconds=1, longest_seconds=20)
    pauses = []
    for _ in range(7):
        back_off.failed(now=0.0, error="no such file")
        pauses.append(back_off.wait(0.0))
    assert pauses == [1, 2, 4, 8, 16, 20, 20]
    assert back_off.error == "no such file"
    assert back_off.wait(25.0) == 0
    back_off.settled()
    assert (back_off.wait(0.0), back_off.error, back_off.failures) == (0, None, 0)


def test_many_failures_do_not_overflow() -> None:
    back_off = BackOff()
    for _ in range(5000):
        back_off.failed(now=0.0, error="x")
    assert back_off.wait(0.0) == 300
