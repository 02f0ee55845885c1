"""A member's states: what the table allows, and nothing else."""

from __future__ import annotations

import itertools

import pytest

from eg_knative.pool.member import IllegalTransitionError, MemberState, PoolMember

BOOTING, READY, CLAIMED, RETIRING = MemberState
ALLOWED = {(BOOTING, READY), (BOOTING, CLAIMED), (BOOTING, RETIRING), (READY, CLAIMED), (READY, RETIRING), (CLAIMED, RETIRING)}


def member(state: MemberState) -> PoolMember:
    return PoolMember(name="m", kernelspec="python", digest="d", substrate="fake", born=0.0, state=state)


@pytest.mark.parametrize(("before", "after"), sorted(ALLOWED, key=str))
def test_allowed(before: MemberState, after: MemberState) -> None:
    one = member(before)
    one.move(after)
    assert one.state is after


@pytest.mark.parametrize(
    ("before", "after"), [pair for pair in itertools.product(MemberState, MemberState) if pair not in ALLOWED]
)
def test_refused_and_unchanged(before: MemberState, after: MemberState) -> None:
    one = member(before)
    with pytest.raises(IllegalTransitionError):
        one.move(after)
    assert one.state is before


def test_a_claimed_member_never_comes_back() -> None:
    seen, reachable = {CLAIMED}, [CLAIMED]
    while reachable:
        state = reachable.pop()
        following = {after for before, after in ALLOWED if before is state} - seen
        seen |= following
        reachable += following
    assert seen == {CLAIMED, RETIRING}
