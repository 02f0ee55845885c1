"""One gateway for all tests of a file, and a way to run a notebook with the clients of JupyterLab's environment."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.servers import KERNELSPEC, Gateway, clean_environment, closing, gateway_environment, lab_python

SCRIPT = Path(__file__).parent / "execute_notebook.py"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateway = Gateway(directory=tmp_path_factory.mktemp("gateway"))
    with closing(gateway):
        yield gateway


@dataclasses.dataclass(frozen=True, kw_only=True)
class Executed:
    """What a client made of a notebook. `error`: type, name and text of what it raised; `outputs`: per code cell."""

    error: dict[str, str] | None
    outputs: list[list[dict[str, Any]]]
    seconds: float

    def text(self, cell: int) -> str:
        return "".join(output.get("text", "") for output in self.outputs[cell])


Execute = Callable[..., Executed]


@pytest.fixture
def execute(gateway: Gateway, tmp_path: Path) -> Execute:
    """`execute("nbclient", ["cell", …])`, in a process of its own."""
    python = lab_python()
    if python is None:
        pytest.skip("JupyterLab's environment .venv-lab is missing. Run: scripts/test clients")

    def run(how: str, cells: Sequence[str], *, parameters: dict[str, Any] | None = None, name: str = "notebook") -> Executed:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.metadata.kernelspec = {"name": KERNELSPEC, "display_name": KERNELSPEC, "language": "python"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        arguments = [str(python), str(SCRIPT), how, str(path), KERNELSPEC, json.dumps(parameters or {})]
        env = clean_environment(tmp_path / "home") | gateway_environment(gateway)
        # This client sends no header with its WebSocket, so the token goes where it can: into the address.
        env["JUPYTER_GATEWAY_WS_URL"] = f"ws://127.0.0.1:{gateway.port}/token/{gateway.token}"
        began = time.monotonic()
        done = subprocess.run(arguments, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        return Executed(**answer, seconds=time.monotonic() - began)

    return run
