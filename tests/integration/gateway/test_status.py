"""What the gateway says of itself: pools, kernels, metrics, health, kernel models."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
import uuid
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.gateway.driver import Driver, wait_until
from tests.servers import ROOT


def samples(gateway: Driver) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = gateway.get("/metrics").text
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_how_a_kernel_was_launched(gateway: Driver) -> None:
    gateway.settle(ready=1)
    kernel_id = gateway.launch(KERNEL_USERNAME="alice")
    told = gateway.get(f"/api/egknative/kernels/{kernel_id}").body
    assert told["pooled"] is True
    assert told["username"] == "alice"
    assert told["launch"]["hit"] is True
    assert told["launch"]["miss_reason"] is None
    assert all(seconds >= 0 for seconds in told["launch"]["phases"].values())
    assert {"promote", "queue"} <= told["launch"]["phases"].keys()
    assert told["member"]["substrate"] == "local"
    assert int(told["member"]["where"]["pid"]) > 1
    assert told["usage"]["resident_bytes"] > 1_000_000


def test_a_foreign_kernel_is_told_as_such(gateway: Driver) -> None:
    kernel_id = gateway.launch(name="python3")
    told = gateway.get(f"/api/egknative/kernels/{kernel_id}").body
    assert (told["pooled"], told["id"], told["name"]) == (False, kernel_id, "python3")


def test_hits_and_misses(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=1)
    gateway.start()
    gateway.settle(ready=1)
    for _ in range(3):
        gateway.launch()
    pool = gateway.pool()
    assert pool["hits"] >= 1
    assert pool["hits"] + sum(pool["misses"].values()) == 3
    assert pool["claimed"] == 3
    found = samples(gateway)
    spec = ("kernelspec", "python_pooled_local")
    hits = found[("eg_knative_claims_total", (spec, ("outcome", "hit")))]
    misses = found.get(("eg_knative_claims_total", (spec, ("outcome", "miss"))), 0)
    assert (hits, hits + misses) == (pool["hits"], 3)
    assert found[("eg_knative_members", (spec, ("state", "claimed")))] == 3
    assert found[("eg_knative_kernels", (("state", "idle"),))] == 3


def test_metrics_are_named_in_the_documentation(gateway: Driver) -> None:
    gateway.launch()
    families = {family.name for family in text_string_to_metric_families(gateway.get("/metrics").text)}
    documented = set(re.findall(r"`(eg_knative_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text()))
    ends = {name.removesuffix("_total") for name in documented}
    assert families <= ends, families - ends
    assert all(name.startswith("eg_knative_") for name in families)


def test_enterprise_gateways_own_pages(gateway: Driver) -> None:
    assert gateway.get("/api").body.keys() == {"version", "gateway_version"}
    assert gateway.get("/api/swagger.json").body["swagger"] == "2.0"
    assert "swagger" in gateway.get("/api/swagger.yaml").text
    for path in ("/healthz", "/readyz"):
        assert gateway.call("HEAD", path, headers={}).status == 200


def test_metrics_can_be_open(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=0, EG_KNATIVE_AUTHENTICATE_PROMETHEUS="false")
    gateway.start()
    assert gateway.call("GET", "/metrics", headers={}).status == 200
    assert gateway.call("GET", "/api/egknative/pools", headers={}).status == 401


def test_the_model_of_a_kernel(gateway: Driver) -> None:
    kernel_id = gateway.launch()
    for _ in range(20):
        model = gateway.get(f"/api/kernels/{kernel_id}").body
        datetime.datetime.strptime(model["last_activity"], "%Y-%m-%dT%H:%M:%S.%fZ")  # noqa: DTZ007  # as the client does it
    assert model["execution_state"] == "idle"
    assert model["connections"] == 0
    assert gateway.execute(kernel_id, "1") == "1"
    later = gateway.get(f"/api/kernels/{kernel_id}").body
    assert later["last_activity"] > model["last_activity"]
    wait_until(lambda: gateway.get(f"/api/kernels/{kernel_id}").body["connections"] == 0)


def test_a_busy_kernel_is_busy_though_nobody_is_connected(gateway: Driver) -> None:
    kernel_id = gateway.launch()
    with contextlib.suppress(TimeoutError):
        gateway.execute(kernel_id, "import time; time.sleep(60)", timeout=1)
    wait_until(lambda: gateway.get(f"/api/kernels/{kernel_id}").body["execution_state"] == "busy", timeout=10)
    assert gateway.call("POST", f"/api/kernels/{kernel_id}/interrupt").status == 204
    wait_until(lambda: gateway.get(f"/api/kernels/{kernel_id}").body["execution_state"] == "idle", timeout=10)


def test_a_kernel_that_dies_says_so(gateway: Driver) -> None:
    kernel_id = gateway.launch()
    gateway.execute(kernel_id, "x = 1")
    with contextlib.suppress(TimeoutError, AssertionError):
        gateway.execute(kernel_id, "import os; os.kill(os.getpid(), 9)", timeout=10)
    wait_until(lambda: gateway.get(f"/api/kernels/{kernel_id}").body["execution_state"] == "idle", timeout=20)
    assert "NameError" in gateway.execute(kernel_id, "x")


def test_idle_kernels_are_culled(new_gateway: Callable[..., Driver]) -> None:
    options = ["--MappingKernelManager.cull_idle_timeout=2", "--MappingKernelManager.cull_interval=1"]
    gateway = new_gateway(options=options, EG_KNATIVE_BEAT_INTERVAL="0.5")
    gateway.start()
    busy, idle = gateway.launch(), gateway.launch()
    with contextlib.suppress(TimeoutError):
        gateway.execute(busy, "import time; time.sleep(600)", timeout=1)
    wait_until(lambda: gateway.get(f"/api/kernels/{idle}").status == 404, timeout=15)
    time.sleep(2)
    assert gateway.get(f"/api/kernels/{busy}").body["execution_state"] == "busy"


def test_authorization_by_user_name(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(EG_UNAUTHORIZED_USERS="root,mallory", EG_AUTHORIZED_USERS="alice,mallory")
    gateway.start()
    for name in ("mallory", "bob", "root"):
        answer = gateway.call("POST", "/api/kernels", {"env": {"KERNEL_USERNAME": name}})
        assert (answer.status, answer.body["reason"], answer.body["field"]) == (403, "unauthorized_user", "KERNEL_USERNAME")
        assert name in answer.body["message"]
        assert gateway.get(f"/api/kernelspecs?user={name}").body["kernelspecs"] == {}
    gateway.launch(KERNEL_USERNAME="alice")
    assert gateway.get("/api/kernelspecs?user=alice").body["kernelspecs"]


def test_a_custom_authorizer_is_asked(new_gateway: Callable[..., Driver]) -> None:
    module = "from jupyter_server.auth.authorizer import Authorizer\nclass ReadOnly(Authorizer):\n"
    module += "    def is_authorized(self, handler, user, action, resource):\n        return action == 'read'\n"
    gateway = new_gateway(options=["--EgKnativeApp.authorizer_class=read_only.ReadOnly"])
    gateway.directory.mkdir(parents=True, exist_ok=True)
    (gateway.directory / "read_only.py").write_text(module)
    gateway.extra["PYTHONPATH"] = str(gateway.directory)
    gateway.start()
    assert gateway.get("/api/kernels").status == 200
    assert gateway.call("POST", "/api/kernels").status == 403
    assert gateway.call("DELETE", f"/api/kernels/{uuid.uuid4()}").status == 403
    assert gateway.call("POST", "/api/sessions", {"path": "x"}).status == 403
