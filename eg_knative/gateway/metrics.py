"""What Prometheus is told: one registry of our own, names `eg_knative_*`, base units, labels from short fixed lists.

A kernelspec's name is the only label that an operator chooses; kernel ids, members and user names are never labels. The names are
listed in docs/metrics.md, and a test compares the two. Counters count from the start of this process.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from eg_knative.pool.events import MISS_REASONS, KernelEvent, PoolEvent

CLAIM_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
READY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
STATES = ("ready", "booting", "claimed", "retiring")
EXECUTION_STATES = ("starting", "idle", "busy", "restarting", "dead")
DEATHS = ("exited", "signalled", "out_of_memory", "never_bound", "not_found", "gone", "other")


class Metrics:
    """The gateway's metrics. `on_pool_event` and `on_kernel_event` are listeners; `observe` fills the gauges before a scrape."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, registry: CollectorRegistry | None = None, version: str = "") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each, that nobody asks for
        self.registry = registry or CollectorRegistry()
        r = self.registry
        Gauge("eg_knative_build_info", "1; the label says which version runs.", ["version"], registry=r).labels(version).set(1)
        self._claims = Counter(
            "eg_knative_claims", "Kernels given to a user, by hit or miss of the pool.", ["kernelspec", "outcome"], registry=r
        )
        self._misses = Counter(
            "eg_knative_claim_misses", "Claims that found no ready kernel, by reason.", ["kernelspec", "reason"], registry=r
        )
        self._failures = Counter("eg_knative_claim_failures", "Launches that failed.", ["kernelspec"], registry=r)
        self._claim_seconds = Histogram(
            "eg_knative_claim_duration_seconds",
            "From the request to the kernel's acceptance.",
            ["kernelspec", "outcome"],
            buckets=CLAIM_BUCKETS,
            registry=r,
        )
        self._ready_seconds = Histogram(
            "eg_knative_member_boot_duration_seconds",
            "From the start of a member to ready.",
            ["kernelspec"],
            buckets=READY_BUCKETS,
            registry=r,
        )
        self._members_ended = Counter(
            "eg_knative_members_ended", "Members that ended before a claim.", ["kernelspec", "outcome"], registry=r
        )
        self._adopted = Counter(
            "eg_knative_kernels_adopted", "Kernels taken over from an earlier gateway.", ["kernelspec"], registry=r
        )
        self._deaths = Counter("eg_knative_kernel_deaths", "Kernels that ended unasked, by reason.", ["reason"], registry=r)
        self._restarts = Counter("eg_knative_kernel_restarts", "Restarts in place, asked for or not.", registry=r)
        self._members = Gauge("eg_knative_members", "Members by state.", ["kernelspec", "state"], registry=r)
        self._wanted = Gauge("eg_knative_members_wanted", "Ready members that the pool aims at.", ["kernelspec"], registry=r)
        self._kernels = Gauge("eg_knative_kernels", "Kernels of all process proxies, by execution state.", ["state"], registry=r)
        self._connections = Gauge("eg_knative_client_connections", "Open channels WebSockets.", registry=r)

    def on_pool_event(self, event: PoolEvent) -> None:
        """A listener for the pool's events."""
        name = event.kernelspec
        if event.kind == "claimed":
            outcome = "hit" if event.reason is None else "miss"
            self._claims.labels(name, outcome).inc()
            if event.reason is not None and event.reason in MISS_REASONS:
                self._misses.labels(name, event.reason).inc()
            if event.seconds is not None:
                self._claim_seconds.labels(name, outcome).observe(event.seconds)
        elif event.kind == "claim-failed":
            self._failures.labels(name).inc()
        elif event.kind == "ready" and event.seconds is not None:
            self._ready_seconds.labels(name).observe(event.seconds)
        elif event.kind == "adopted":
            self._adopted.labels(name).inc()
        elif event.kind in {"start-failed", "retired", "died"}:
            self._members_ended.labels(name, event.kind.replace("-", "_")).inc()

    def on_kernel_event(self, event: KernelEvent) -> None:
        """A listener for one kernel's events."""
        if event.kind == "restarted":
            self._restarts.inc()
        elif event.kind in {"died", "gone"}:
            ended = event.exit if isinstance(event.exit, Mapping) else {"reason": getattr(event.exit, "reason", None)}
            reason = "gone" if event.kind == "gone" else str(ended.get("reason"))
            self._deaths.labels(reason if reason in DEATHS else "other").inc()

    def observe(self, *, members: Mapping[str, Mapping[str, int]], kernels: Sequence[Mapping[str, Any]]) -> None:
        """Set the gauges. `members`: kernelspec → state (or `wanted`) → number. `kernels`: REST models."""
        self._members.clear()
        self._wanted.clear()
        for name, counts in members.items():
            for state in STATES:
                self._members.labels(name, state).set(counts.get(state, 0))
            self._wanted.labels(name).set(counts.get("wanted", 0))
        tally = Tally(str(kernel["execution_state"]) for kernel in kernels)
        for state in EXECUTION_STATES:
            self._kernels.labels(state).set(tally.get(state, 0))
        self._connections.set(sum(int(kernel["connections"]) for kernel in kernels))

    def render(self) -> bytes:
        """The text format."""
        return bytes(generate_latest(self.registry))
