"""What is kept for a client that is away: in order, within bounds, and never silently less."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eg_knative.wire.backlog import Backlog, BacklogLimits
from eg_knative.wire.jupyter_messages import Message, compose

KINDS = ("stream", "display_data", "status", "execute_reply", "execute_input")


def make(kind: str, number: int, size: int) -> tuple[str, Message]:
    content = {"name": "stdout", "text": f"{number:06}" + "x" * size, "execution_state": "idle"}
    return ("shell" if kind.endswith("_reply") else "iopub", compose(kind, content, session="s", identifier=str(number)))


entries = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 600)), max_size=60)


@given(entries, st.integers(4, 40), st.integers(2_000, 20_000))
def test_it_stays_within_its_bounds_in_order_and_counts_what_it_let_go(
    plan: list[tuple[str, int]], count: int, size: int
) -> None:
    backlog = Backlog(BacklogLimits(messages=count, size=size))
    for number, (kind, length) in enumerate(plan):
        backlog.push(*make(kind, number, length))
        assert len(backlog) <= count
    dropped = backlog.dropped
    kept = backlog.drain()
    assert bool(dropped) == (bool(kept) and "were let go" in kept[0][1].content().get("text", ""))
    if dropped:
        assert kept.pop(0)[0] == "iopub"
    assert sum(message.size for _, message in kept) <= size
    numbers = [int(message.identifier) for _, message in kept]
    assert numbers == sorted(numbers)
    assert len(numbers) + dropped == len(plan)
    assert backlog.drain() == []


def test_outputs_go_before_replies_and_statuses() -> None:
    backlog = Backlog(BacklogLimits(messages=20, size=10**6))
    for number in range(10):
        backlog.push(*make("execute_reply" if number % 2 else "status", number, 0))
    for number in range(10, 100):
        backlog.push(*make("stream", number, 0))
    kept = [int(message.identifier) for _, message in backlog.drain()[1:]]
    assert kept[:10] == list(range(10))
    assert kept[-1] == 99


def test_one_output_larger_than_everything_is_let_go_with_a_word() -> None:
    backlog = Backlog(BacklogLimits(messages=20, size=1_000))
    backlog.push(*make("execute_reply", 0, 0))
    backlog.push(*make("stream", 1, 5_000))
    marker, reply = backlog.drain()
    assert "1 messages" in str(marker[1].content()["text"])
    assert reply[1].identifier == "0"


def test_what_is_put_back_comes_first() -> None:
    backlog = Backlog(BacklogLimits())
    backlog.push(*make("stream", 3, 0))
    backlog.put_back([make("stream", 1, 0), make("stream", 2, 0)])
    assert [message.identifier for _, message in backlog.drain()] == ["1", "2", "3"]
