"""jupyter_server's rate limits: its own numbers, without its clock."""

from __future__ import annotations

from eg_knative.gateway.rate_limit import RateLimiter, RateLimits


def test_messages_past_the_rate_are_held_back_and_said_once() -> None:
    limiter = RateLimiter(RateLimits(messages=10, window=1.0))
    verdicts = [limiter.count(kind="stream", size=1, now=0.01 * i) for i in range(30)]
    assert [verdict.passes for verdict in verdicts] == [True] * 10 + [False] * 20
    assert sum(verdict.notice is not None for verdict in verdicts) == 1
    assert "iopub_msg_rate_limit=10" in str(verdicts[10].notice)


def test_it_resumes_below_four_fifths() -> None:
    limiter = RateLimiter(RateLimits(messages=10, window=1.0))
    for i in range(11):
        limiter.count(kind="stream", size=1, now=0.01 * i)
    assert not limiter.count(kind="stream", size=1, now=1.02).passes  # three have left the window: 8 of 10 with this one
    assert limiter.count(kind="stream", size=1, now=1.035).passes


def test_only_streams_count_bytes() -> None:
    limiter = RateLimiter(RateLimits(size=1000, window=1.0))
    assert limiter.count(kind="display_data", size=10**9, now=0).passes
    assert limiter.count(kind="stream", size=900, now=0).passes
    verdict = limiter.count(kind="stream", size=200, now=0)
    assert not verdict.passes
    assert "data rate" in str(verdict.notice)


def test_statuses_always_pass_and_idle_starts_anew() -> None:
    limiter = RateLimiter(RateLimits(messages=1, window=1.0))
    assert limiter.count(kind="stream", size=1, now=0).passes
    assert not limiter.count(kind="stream", size=1, now=0).passes
    assert limiter.count(kind="status", size=1, now=0).passes
    limiter.reset()
    assert limiter.count(kind="stream", size=1, now=0).passes


def test_no_limit_counts_nothing() -> None:
    limiter = RateLimiter(RateLimits())
    assert all(limiter.count(kind="stream", size=10**9, now=0).passes for _ in range(1000))
