"""Notebooks run by nbclient and by papermill through jupyter_server's gateway kernel manager, as Elyra runs them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.clients.conftest import Execute
from tests.servers import KERNELSPEC, Gateway

PLOT = "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 4, 2])\nplt.show()"
CLIENTS = pytest.mark.parametrize("client", ["nbclient", "papermill"])


@pytest.fixture(autouse=True)
def _no_kernel_is_left(gateway: Gateway) -> object:
    yield
    assert gateway.request("GET", "/api/kernels") == []


@CLIENTS
def test_a_notebook_runs_to_its_end(client: str, execute: Execute) -> None:
    cells = ["x = 41", "print(x + 1)", "{'a': x}", PLOT, "import os; print(os.environ['KERNEL_USERNAME'])"]
    done = execute(client, cells)
    assert done.error is None
    assert done.text(1) == "42\n"
    assert done.outputs[2][0]["data"]["text/plain"] == "{'a': 41}"
    assert any("image/png" in output.get("data", {}) for output in done.outputs[3])
    assert done.text(4) == "tester\n"


def test_papermill_gives_parameters(execute: Execute) -> None:
    done = execute("papermill", ["print(sorted(names))"], parameters={"names": ["b", "a"]})
    assert done.error is None
    assert done.text(1) == "['a', 'b']\n"  # Cell 0 is the one that papermill puts the parameters in.


@CLIENTS
def test_an_error_in_a_cell_ends_the_run_with_that_error(client: str, execute: Execute) -> None:
    done = execute(client, ["print('before')", "1 / 0", "print('never')"])
    assert done.error is not None
    assert done.error["name"] == "ZeroDivisionError"
    printed = "".join(done.text(number) for number in range(len(done.outputs)))
    assert "before" in printed
    assert "never" not in printed


@CLIENTS
def test_a_cell_that_asks_for_input_fails_and_does_not_wait(client: str, execute: Execute) -> None:
    done = execute(client, ["input('who? ')"])
    assert done.error is not None
    assert done.error["name"] == "StdinNotImplementedError"


@CLIENTS
def test_a_kernel_that_dies_in_a_cell_is_reported_and_does_not_hang(client: str, execute: Execute) -> None:
    done = execute(client, ["print('alive')", "import os; os._exit(7)", "print('never')"])
    assert done.error is not None
    assert done.seconds < 30
    assert "exit code 7" in done.error["text"] or done.error["type"] == "DeadKernelError", done.error


def test_four_notebooks_at_once_each_have_a_kernel_of_their_own(execute: Execute) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(execute, "nbclient", [f"x = {n}", "print(x)"], name=f"notebook-{n}") for n in range(4)]
        done = [run.result() for run in runs]
    assert [run.error for run in done] == [None] * 4
    assert [run.text(1) for run in done] == [f"{n}\n" for n in range(4)]


def test_the_pool_refills_after_the_runs(gateway: Gateway) -> None:
    pool = gateway.request("GET", "/api/egknative/pools")["pools"][KERNELSPEC]
    assert pool["claimed"] == 0
    assert pool["ready"] + pool["booting"] == pool["wanted"] == gateway.pool_size
