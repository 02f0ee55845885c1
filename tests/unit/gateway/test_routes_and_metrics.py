"""Every route asks for the token but those that say so; every metric is in the documentation, and the other way round."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eg_knative.errors import NotAllowedError
from eg_knative.gateway.admission import require_room
from eg_knative.gateway.app import EgKnativeApp
from eg_knative.gateway.metrics import Metrics
from eg_knative.gateway.requests import GatewayHandler
from eg_knative.gateway.web_app import request_handlers
from eg_knative.pool.events import MISS_REASONS, KernelEvent, PoolEvent

ROOT = Path(__file__).resolve().parents[3]


def test_every_route_asks_for_the_token() -> None:
    routes = request_handlers(EgKnativeApp())
    assert all(issubclass(handler, GatewayHandler) for _, handler, *_ in routes)
    assert {pattern for pattern, handler, *_ in routes if handler.requires_token is False} == {"/healthz", "/readyz", "/(.*)"}
    assert routes[-1][0] == "/(.*)"
    assert len({pattern for pattern, *_ in routes}) == len(routes)


def test_routes_below_a_base_url() -> None:
    app = EgKnativeApp(base_url="/team/")
    assert all(pattern.startswith("/team/") for pattern, *_ in request_handlers(app))


def test_metrics_and_their_documentation_agree() -> None:
    metrics = Metrics(version="1")
    names = {family.name for family in metrics.registry.collect()}
    documented = set(re.findall(r"^\| `(eg_knative_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    assert {name.removesuffix("_total") for name in documented} == names


def test_events_are_counted() -> None:
    metrics = Metrics()
    for reason in (None, *MISS_REASONS):
        metrics.on_pool_event(PoolEvent(kind="claimed", kernelspec="k", reason=reason, seconds=0.01))
    metrics.on_pool_event(PoolEvent(kind="claim-failed", kernelspec="k", reason="launch_timeout"))
    metrics.on_pool_event(PoolEvent(kind="ready", kernelspec="k", seconds=1.0))
    metrics.on_pool_event(PoolEvent(kind="retired", kernelspec="k", reason="aged"))
    metrics.on_kernel_event(KernelEvent(kind="restarted"))
    metrics.on_kernel_event(KernelEvent(kind="gone"))
    metrics.on_kernel_event(KernelEvent(kind="died", exit={"reason": "an invention of a launcher's"}))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(name, labels)

    assert value("eg_knative_claims_total", kernelspec="k", outcome="hit") == 1
    assert value("eg_knative_claims_total", kernelspec="k", outcome="miss") == len(MISS_REASONS)
    assert all(value("eg_knative_claim_misses_total", kernelspec="k", reason=reason) == 1 for reason in MISS_REASONS)
    assert value("eg_knative_claim_failures_total", kernelspec="k") == 1
    assert value("eg_knative_member_boot_duration_seconds_count", kernelspec="k") == 1
    assert value("eg_knative_members_ended_total", kernelspec="k", outcome="retired") == 1
    assert value("eg_knative_kernel_restarts_total") == 1
    assert value("eg_knative_kernel_deaths_total", reason="gone") == 1
    assert value("eg_knative_kernel_deaths_total", reason="other") == 1


def test_room() -> None:
    require_room("a", owners=["a"] * 100, maximum=None, per_user=-1)
    require_room("a", owners=["b", "b"], maximum=3, per_user=1)
    with pytest.raises(NotAllowedError) as caught:
        require_room("a", owners=["b", "b"], maximum=2, per_user=None)
    assert caught.value.reason == "kernel_limit"
    with pytest.raises(NotAllowedError) as caught:
        require_room("a", owners=["a", "b"], maximum=10, per_user=1)
    assert caught.value.reason == "kernel_limit_per_user"
    with pytest.raises(NotAllowedError):
        require_room("a", owners=[], maximum=0, per_user=None)
