"""PooledProcessProxy in stock `jupyter enterprisegateway`, configured by environment variables alone."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.integration.gateway.driver import Driver, wait_until
from tests.servers import ROOT


class StockDriver(Driver):
    """Stock Enterprise Gateway with this project's kernelspecs on Jupyter's path."""

    ready_path = "/api/kernelspecs"

    def command(self) -> Sequence[str]:
        program = str(Path(sys.executable).parent / "jupyter-enterprisegateway")
        return [program, f"--port={self.port}", "--EnterpriseGatewayApp.list_kernels=True", *self.options]

    def environment(self) -> Mapping[str, str]:
        shipped = self.directory / "share"
        shipped.mkdir(exist_ok=True)
        if not (shipped / "kernels").exists():
            (shipped / "kernels").symlink_to(ROOT / "kernelspecs")
        return {
            **super().environment(),
            "JUPYTER_PATH": str(shipped),
            "EG_KNATIVE_POOL_SIZE": "1",
            "EG_KNATIVE_UNCLAIMED_TIMEOUT": "2",
            "GATEWAY_PASSWORD": "hunter2",
        }


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[StockDriver]:
    driver = StockDriver(directory=tmp_path / "stock", options=["--debug"])
    yield driver
    driver.close()


def members(gateway: Driver) -> list[str]:
    directory = gateway.run_directory / "members"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def start(gateway: Driver, **env: str) -> str:
    answer = gateway.call("POST", "/api/kernels", {"name": "python_pooled_local", "env": {"KERNEL_USERNAME": "alice", **env}})
    assert answer.status == 201, answer.text
    return str(answer.body["id"])


@pytest.mark.timeout(180)
def test_a_kernels_life_in_stock(stock: StockDriver) -> None:
    stock.start()
    first = start(stock, KERNEL_X="one")
    assert stock.execute(first, "import os; print(os.environ['KERNEL_X'], os.environ['KERNEL_ID'])") == f"one {first}"
    assert stock.execute(first, "print('GATEWAY_PASSWORD' in os.environ)") == "False"
    wait_until(lambda: len(members(stock)) == 2, timeout=20)
    second = start(stock, KERNEL_X="two")
    assert stock.execute(second, "import os; print(os.environ['KERNEL_X'])") == "two"
    stock.execute(second, "kept = 1")
    assert stock.call("POST", f"/api/kernels/{second}/interrupt").status == 204
    assert stock.execute(second, "kept") == "1"
    assert stock.call("POST", f"/api/kernels/{second}/restart").status == 200
    assert "NameError" in stock.execute(second, "kept")
    assert stock.execute(second, "import os; print(os.environ['KERNEL_X'])") == "two"
    assert stock.call("DELETE", f"/api/kernels/{first}").status == 204
    assert stock.call("DELETE", f"/api/kernels/{second}").status == 204
    wait_until(lambda: len(members(stock)) == 1, timeout=20)
    assert [kernel["id"] for kernel in stock.get("/api/kernels").body] == []
    assert "Traceback" not in stock.text_of_log()


@pytest.mark.timeout(180)
def test_errors_reach_the_user_in_stock(stock: StockDriver) -> None:
    stock.start()
    for env, status, reason, word in (
        ({"KERNEL_USERNAME": "root"}, 403, "unauthorized_user", "KERNEL_USERNAME"),
        ({"KERNEL_USERNAME": "alice", "KERNEL_LAUNCH_TIMEOUT": "0.001"}, 504, "launch_timeout", "python_pooled_local"),
    ):
        answer = stock.call("POST", "/api/kernels", {"name": "python_pooled_local", "env": env})
        assert (answer.status, answer.body["reason"]) == (status, reason), answer.text
        assert word in answer.body["message"]
    assert stock.get("/api/kernels").body == []


@pytest.mark.timeout(180)
def test_stock_leaves_nothing_when_it_ends(stock: StockDriver) -> None:
    stock.start()
    start(stock)
    wait_until(lambda: len(members(stock)) == 2, timeout=20)
    family = stock.family()
    stock.stop(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [process.cmdline() for process in alive] == []


@pytest.mark.timeout(180)
def test_a_persisted_session_is_adopted_in_stock(stock: StockDriver, new_gateway: Callable[..., Driver]) -> None:
    sessions = stock.directory / "persisted"
    sessions.mkdir()
    stock.extra.update(EG_KERNEL_SESSION_PERSISTENCE="True", EG_PERSISTENCE_ROOT=str(sessions), EG_AVAILABILITY_MODE="standalone")
    stock.start()
    kernel_id = start(stock)
    stock.execute(kernel_id, "answer = 42")
    stock.stop(signal.SIGKILL)
    stock.start()
    assert [kernel["id"] for kernel in stock.get("/api/kernels").body] == [kernel_id]
    assert stock.execute(kernel_id, "answer") == "42"
    assert stock.call("DELETE", f"/api/kernels/{kernel_id}").status == 204
