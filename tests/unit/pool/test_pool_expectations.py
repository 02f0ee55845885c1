"""Starts and stops that were issued count until they are seen, or until they expire."""

from __future__ import annotations

from eg_knative.pool.expectations import Expectations


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(timeout: float = 300.0) -> tuple[Expectations, FakeClock]:
    clock = FakeClock()
    return Expectations(timeout_seconds=timeout, clock=clock), clock


def test_a_start_counts_in_its_group_until_it_is_observed() -> None:
    expectations, _ = make()
    expectations.expect_start(name="a", group="local")
    expectations.expect_start(name="b", group="local")
    expectations.expect_start(name="c", group="other")
    assert (expectations.starts("local"), expectations.starts("other"), expectations.starts("none")) == (2, 1, 0)
    expectations.start_observed("a")
    expectations.start_observed("a")
    assert expectations.starts("local") == 1


def test_the_same_start_counts_once() -> None:
    expectations, _ = make()
    expectations.expect_start(name="a", group="local")
    expectations.expect_start(name="a", group="local")
    assert expectations.starts("local") == 1


def test_a_start_that_is_never_observed_expires() -> None:
    expectations, clock = make(timeout=300)
    expectations.expect_start(name="a", group="local")
    clock.now += 299
    assert expectations.starts("local") == 1
    clock.now += 1
    assert expectations.starts("local") == 0


def test_expecting_again_prolongs() -> None:
    expectations, clock = make(timeout=300)
    expectations.expect_start(name="a", group="local")
    clock.now += 200
    expectations.expect_start(name="a", group="local")
    clock.now += 200
    assert expectations.starts("local") == 1


def test_a_stop_makes_the_end_no_surprise_and_overtakes_the_start() -> None:
    expectations, clock = make(timeout=300)
    expectations.expect_start(name="a", group="local")
    assert not expectations.stop_expected("a")
    expectations.expect_stop(name="a", group="local")
    assert (expectations.starts("local"), expectations.stops("local")) == (0, 1)
    assert expectations.stop_expected("a")
    expectations.stop_observed("a")
    assert not expectations.stop_expected("a")
    expectations.expect_stop(name="b", group="local")
    clock.now += 300
    assert not expectations.stop_expected("b")
