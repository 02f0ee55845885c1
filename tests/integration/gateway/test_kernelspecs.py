"""Kernelspecs appear, change and go while the gateway runs; a broken one hurts itself alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gateway.driver import Driver, wait_until

PROXY = "eg_knative.processproxies.pooled.PooledProcessProxy"


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "A test's",
        "language": "python",
        "metadata": {"process_proxy": {"class_name": PROXY, "config": {"pool": {"floor": 0, "ceiling": 0}}}},
    }
    return {**base, **changes}


@pytest.fixture
def kernels(gateway: Driver) -> Iterator[Path]:
    directory = gateway.directory / "home" / ".local" / "share" / "jupyter" / "kernels"
    directory.mkdir(parents=True, exist_ok=True)
    yield directory
    names = {path.name for path in directory.iterdir()}
    shutil.rmtree(directory)
    wait_until(lambda: not names & gateway.get("/api/kernelspecs").body["kernelspecs"].keys())
    wait_until(lambda: not names & gateway.get("/api/egknative/pools").body["broken_kernelspecs"].keys())


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (directory / name / "kernel.json").write_text(text)


def served(gateway: Driver) -> dict[str, Any]:
    return dict(gateway.get("/api/kernelspecs").body["kernelspecs"])


def test_shipped_kernelspecs_are_there_without_an_install_step(gateway: Driver) -> None:
    body = gateway.get("/api/kernelspecs").body
    assert body["default"] == "python_pooled_local"
    spec = body["kernelspecs"]["python_pooled_local"]
    for resource in ("logo-svg", "logo-64x64", "logo-32x32"):
        answer = gateway.get(spec["resources"][resource])
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("image/")
    assert gateway.get("/api/kernelspecs/python_pooled_local").body == spec
    assert gateway.get("/kernelspecs/python_pooled_local/../../../setup.cfg").status in {403, 404}
    assert gateway.get("/kernelspecs/python_pooled_local/%2e%2e/%2e%2e/setup.cfg").status in {403, 404}


def test_new_changed_and_removed(gateway: Driver, kernels: Path) -> None:
    write(kernels, "fresh", document())
    wait_until(lambda: "fresh" in served(gateway), timeout=2)
    kernel_id = gateway.launch(name="fresh")
    assert gateway.execute(kernel_id, "1 + 1") == "2"
    write(kernels, "fresh", document(display_name="Another name", env={"MARK": "new"}))
    wait_until(lambda: served(gateway)["fresh"]["spec"]["display_name"] == "Another name", timeout=2)
    assert gateway.execute(gateway.launch(name="fresh"), "import os; print(os.environ['MARK'])") == "new"
    shutil.rmtree(kernels / "fresh")
    wait_until(lambda: "fresh" not in served(gateway), timeout=2)
    assert gateway.call("POST", "/api/kernels", {"name": "fresh"}).status == 404
    assert gateway.execute(kernel_id, "2 + 2") == "4"


def test_a_kernelspec_can_be_launched_at_once(gateway: Driver, kernels: Path) -> None:
    write(kernels, "at-once", document())
    assert gateway.call("POST", "/api/kernels", {"name": "at-once"}).status == 201


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({"display_name": "x"}, "argv"),
        (document(argv=[]), "argv"),
        (document(argv="python"), "argv"),
        (document(argv=["python"]), "{connection_file}"),
        (document(env={"A": 1}), "env.A"),
        (document(env=[]), "env"),
        (document(metadata=[]), "metadata"),
        (document(interrupt_mode="shout"), "interrupt_mode"),
        (document(display_name=5), "display_name"),
        (document(metadata={"process_proxy": {"class_name": PROXY, "config": {"pol": {}}}}), "Did you mean pool"),
        (document(metadata={"process_proxy": {"class_name": PROXY, "config": {"pool": {"floor": 3, "ceiling": 1}}}}), "floor"),
    ],
)
def test_a_broken_one_hides_itself_and_says_why(gateway: Driver, kernels: Path, content: Any, word: str) -> None:
    write(kernels, "broken", content)
    write(kernels, "sound", document())
    wait_until(lambda: "sound" in served(gateway), timeout=2)
    assert "broken" not in served(gateway)
    before = gateway.inventory()
    answer = gateway.call("POST", "/api/kernels", {"name": "broken"})
    assert (answer.status, answer.body["reason"]) == (500, "bad_kernelspec")
    assert word in answer.body["message"]
    assert "Traceback" not in answer.text
    assert word in gateway.get("/api/egknative/pools").body["broken_kernelspecs"]["broken"]
    assert gateway.inventory() == before


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["/no/such/program", "{connection_file}"], "/no/such/program"),
        (["python", "-c", "import sys; sys.exit(7)", "{connection_file}"], "7"),
        (["python", "-c", "import time; time.sleep(600)", "{connection_file}"], ""),
    ],
)
def test_kernels_that_cannot_be_started(gateway: Driver, kernels: Path, argv: list[str], word: str) -> None:
    write(kernels, "doomed", document(argv=argv))
    wait_until(lambda: "doomed" in served(gateway), timeout=2)
    gateway.settle(ready=1)
    before, processes = gateway.inventory(), {process.pid for process in gateway.family()}
    answer = gateway.call("POST", "/api/kernels", {"name": "doomed", "env": {"KERNEL_LAUNCH_TIMEOUT": "3"}})
    assert answer.status in {500, 504}, answer.text
    assert word in answer.body["message"]
    assert "doomed" in answer.body["message"]
    wait_until(lambda: gateway.inventory() == before)
    wait_until(lambda: {process.pid for process in gateway.family()} == processes)


def test_a_foreign_kernel_that_cannot_be_started(gateway: Driver, kernels: Path) -> None:
    write(kernels, "foreign", document(argv=["/no/such/program", "{connection_file}"], metadata={}))
    wait_until(lambda: "foreign" in served(gateway), timeout=2)
    answer = gateway.call("POST", "/api/kernels", {"name": "foreign"})
    assert (answer.status, answer.body["reason"]) == (500, "launch_failed")
    assert "/no/such/program" in answer.body["message"]
    assert gateway.get("/api/kernels").body == []


def test_a_listing_walks_no_disk(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=0)
    gateway.start()
    gateway.get("/api/kernelspecs")
    began = [gateway.get("/api/kernelspecs").status for _ in range(100)]
    assert began == [200] * 100
