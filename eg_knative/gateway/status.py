"""The gateway's own REST: what the pools hold, how one kernel was launched, metrics, and whether the gateway is well.

No answer holds a key, a token or an environment. /healthz and /readyz need no token, so that whatever restarts containers can
ask them, and say nothing about anybody.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tornado import web

from eg_knative.errors import EgKnativeError
from eg_knative.gateway.metrics import Metrics
from eg_knative.gateway.requests import JSONHandler
from eg_knative.gateway.warm_kernel import WarmKernelManager
from eg_knative.processproxies.http import ReasonedHTTPError
from eg_knative.runtime import Runtime


class _StatusHandler(JSONHandler):
    @property
    def runtime(self) -> Runtime:
        """The runtime of this gateway."""
        runtime: Runtime = self.settings["egknative_runtime"]
        return runtime


class PoolsHandler(_StatusHandler):
    """GET /api/egknative/pools."""

    async def get(self) -> None:
        """The pool manager's own account, and the kernelspecs that are broken."""
        index = self.settings["egknative_kernelspecs"]
        broken = {name: entry.error.message for name, entry in index.snapshot.items() if entry.error is not None}
        self.answer({**self.runtime.pool.status(), "broken_kernelspecs": broken})


class KernelStatusHandler(_StatusHandler):
    """GET /api/egknative/kernels/<id>."""

    async def get(self, kernel_id: str) -> None:
        """Where the kernel runs, how it was launched, and what it uses now."""
        kernels = self.settings["kernel_manager"]
        model = kernels.kernel_model(kernel_id)
        manager = kernels.get_kernel(kernel_id)
        claimed = manager.claimed if isinstance(manager, WarmKernelManager) else None
        if claimed is None:
            self.answer({**model, "pooled": False})
            return
        try:
            usage: Any = dataclasses.asdict(await claimed.usage())
        except EgKnativeError as error:
            usage = {"error": error.message}
        launch, beat, member = claimed.launch, claimed.latest_beat, claimed.member
        self.answer(
            {
                **model,
                "pooled": True,
                "username": claimed.claim.username,
                "boot_id": claimed.boot_id,
                "kernel_generation": claimed.kernel_generation,
                "member": {
                    "name": member.name,
                    "substrate": member.substrate,
                    "created_at": member.created_at,
                    "where": dict(member.where),
                    "started_by": member.started_by,
                    "notice": member.notice,
                },
                "launch": {
                    **{field.name: getattr(launch, field.name) for field in dataclasses.fields(launch)},
                    "phases": dict(launch.phases),
                    "boot_phases": dict(launch.boot_phases),
                },
                "kernel_state": beat.kernel_state if beat is not None else None,
                "restarts": beat.restarts if beat is not None else None,
                "usage": usage,
            }
        )


class MetricsHandler(_StatusHandler):
    """GET /metrics, for Prometheus."""

    @property
    def requires_token(self) -> bool:  # type: ignore[override]
        """An operator may open the metrics to everybody (authenticate_prometheus)."""
        return bool(self.settings["egknative_authenticate_prometheus"])

    async def get(self) -> None:
        """The text format."""
        metrics: Metrics = self.settings["egknative_metrics"]
        pools = self.runtime.pool.status()["pools"]
        metrics.observe(members=pools, kernels=self.settings["kernel_manager"].list_kernels())
        self.set_header("Content-Type", metrics.content_type)
        self.finish(metrics.render())


class HealthHandler(_StatusHandler):
    """GET /healthz: the event loop turns."""

    requires_token = False

    async def get(self) -> None:
        """Always 200."""
        self.answer({"status": "ok"})

    async def head(self) -> None:
        """Some load balancers ask so."""
        await self.get()


class ReadyHandler(_StatusHandler):
    """GET /readyz: launches are taken."""

    requires_token = False

    async def get(self) -> None:
        """200, or 503 while the gateway is ending."""
        if self.settings["egknative_stopping"]():
            raise ReasonedHTTPError(503, reason="stopping", message="The gateway is ending.")
        self.answer({"status": "ready"})

    async def head(self) -> None:
        """Some load balancers ask so."""
        await self.get()


status_handlers: list[tuple[str, type[web.RequestHandler]]] = [
    (r"/api/egknative/pools", PoolsHandler),
    (r"/api/egknative/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)", KernelStatusHandler),
    (r"/metrics", MetricsHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
]
