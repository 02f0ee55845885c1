"""The sizing policy by whole values: the same question has one answer."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_knative.pool.history import DECAY_SECONDS, ClaimHistory
from eg_knative.pool.sizing import Allocation, Demand, allocate, gain


def demand(name: str, *, floor: int = 0, ceiling: int = 10, **more: object) -> Demand:
    return Demand(kernelspec=name, substrate="local", floor=floor, ceiling=ceiling, **more)  # type: ignore[arg-type]


def wanted(*demands: Demand, total: int = 100, room: int = 100) -> dict[str, int]:
    given = allocate(demands, total=total, rooms={"local": room})
    return {name: allocation.wanted for name, allocation in given.items()}


@pytest.mark.parametrize(("slot", "expected"), [(0, 1.0), (1, 0.632121), (2, 0.264241), (3, 0.080301), (4, 0.018988)])
def test_the_gain_is_the_tail_of_poisson(slot: int, expected: float) -> None:
    assert gain(mean=1.0, slot=slot) == pytest.approx(expected, abs=1e-6)


def test_without_claims_there_is_no_gain() -> None:
    assert [gain(mean=0.0, slot=slot) for slot in (0, 1, 2)] == [1.0, 0.0, 0.0]


def test_without_history_everyone_has_the_floor() -> None:
    assert wanted(demand("a", floor=2), demand("b", floor=1), demand("c")) == {"a": 2, "b": 1, "c": 0}


def test_claims_raise_the_number_to_the_quantile_and_not_above_the_ceiling() -> None:
    busy = {"claims_per_second": 0.5, "boot_seconds": 2.0}  # one claim in a boot time: P(N ≥ 6) = 6e-4, P(N ≥ 7) = 8e-5
    assert wanted(demand("a", floor=1, **busy)) == {"a": 6}
    assert wanted(demand("a", floor=1, ceiling=4, **busy)) == {"a": 4}


def test_a_member_that_exists_is_kept_at_a_lower_gain() -> None:
    busy = {"claims_per_second": 0.5, "boot_seconds": 2.0}
    assert wanted(demand("a", held=6, **busy)) == {"a": 6}
    assert wanted(demand("a", held=7, **busy)) == {"a": 7}, "P(N ≥ 7) = 8e-5 starts none, and keeps one"
    assert wanted(demand("a", held=8, **busy)) == {"a": 7}, "P(N ≥ 8) = 1e-5 does not keep one"


def test_a_slow_boot_wants_more_members() -> None:
    slow = demand("slow", claims_per_second=0.05, boot_seconds=60.0)
    fast = demand("fast", claims_per_second=0.05, boot_seconds=1.0)
    assert wanted(slow, fast) == {"slow": 10, "fast": 2}


def test_scarce_slots_go_to_the_highest_gain_not_one_to_each() -> None:
    popular = demand("popular", floor=3, claims_per_second=1.0, boot_seconds=2.0)
    rare = [demand(f"rare{i}", floor=1, claims_per_second=0.001) for i in range(5)]
    assert wanted(popular, *rare, total=4) == {"popular": 3, "rare0": 1, "rare1": 0, "rare2": 0, "rare3": 0, "rare4": 0}


def test_floors_go_before_gains() -> None:
    popular = demand("popular", claims_per_second=10.0)
    quiet = demand("quiet", floor=2)
    assert wanted(popular, quiet, total=3) == {"popular": 1, "quiet": 2}


def test_without_history_scarce_slots_go_round() -> None:
    assert wanted(demand("b", floor=3), demand("a", floor=3), total=3) == {"a": 2, "b": 1}


def test_what_limits_is_named() -> None:
    one = demand("a", floor=3)
    assert allocate([one], total=2, rooms={"local": 5}) == {"a": Allocation(wanted=2, short=1, limited_by="total")}
    assert allocate([one], total=9, rooms={"local": 1}) == {"a": Allocation(wanted=1, short=2, limited_by="local")}
    assert allocate([one], total=9, rooms={}) == {"a": Allocation(wanted=0, short=3, limited_by="local")}
    assert allocate([one], total=9, rooms={"local": 9}) == {"a": Allocation(wanted=3)}


def test_a_full_substrate_does_not_stop_another() -> None:
    here = Demand(kernelspec="here", substrate="local", floor=2, ceiling=2)
    there = Demand(kernelspec="there", substrate="cluster", floor=2, ceiling=2)
    given = allocate([here, there], total=9, rooms={"local": 0, "cluster": 9})
    assert {name: allocation.wanted for name, allocation in given.items()} == {"here": 0, "there": 2}


demands = st.lists(
    st.builds(
        Demand,
        kernelspec=st.sampled_from("abcdefgh"),
        substrate=st.sampled_from(["local", "cluster"]),
        floor=st.integers(0, 5),
        ceiling=st.integers(5, 12),
        held=st.integers(0, 12),
        claims_per_second=st.floats(0, 50),
        boot_seconds=st.floats(0.01, 600),
    ),
    max_size=8,
    unique_by=lambda one: one.kernelspec,
)


@given(demands, st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.randoms())
def test_no_limit_is_ever_passed_and_order_does_not_matter(
    asked: list[Demand], total: int, local: int, cluster: int, shuffle: random.Random
) -> None:
    rooms = {"local": local, "cluster": cluster}
    given = allocate(asked, total=total, rooms=rooms)
    assert sum(allocation.wanted for allocation in given.values()) <= total
    for name, room in rooms.items():
        assert sum(given[one.kernelspec].wanted for one in asked if one.substrate == name) <= room
    for one in asked:
        allocation = given[one.kernelspec]
        assert allocation.wanted <= one.ceiling
        assert allocation.wanted + allocation.short >= one.floor
        assert (allocation.limited_by is None) == (allocation.short == 0)
    again = list(asked)
    shuffle.shuffle(again)
    assert allocate(again, total=total, rooms=rooms) == given


def test_a_steady_rate_is_learned() -> None:
    history = ClaimHistory(since=0.0)
    for second in range(0, 36_000, 100):
        history.claimed(float(second))
    assert history.rate(36_000.0) == pytest.approx(0.01, rel=0.02)
    assert history.rate(36_000.0 + DECAY_SECONDS) == pytest.approx(0.01 / math.e, rel=0.02)


def test_one_claim_after_the_start_is_no_storm() -> None:
    history = ClaimHistory(since=0.0)
    history.claimed(1.0)
    assert history.rate(1.0) == pytest.approx(1 / 900, rel=0.1)


def test_the_boot_time_is_the_first_one_measured_then_a_moving_mean() -> None:
    history = ClaimHistory(since=0.0)
    history.booted(10.0)
    assert history.boot_seconds == 10.0
    history.booted(20.0)
    assert history.boot_seconds == 13.0
