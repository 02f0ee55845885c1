"""Runs a notebook through the gateway that the environment names, as Elyra does, and prints what became of it as JSON.

It is run by the Python of JupyterLab's environment, not by the tests' own:
`python execute_notebook.py nbclient|papermill NOTEBOOK KERNELSPEC [PARAMETERS]`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import nbformat
from jupyter_server.gateway.gateway_client import GatewayClient
from nbclient import NotebookClient
from papermill import execute_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

MANAGER = "jupyter_server.gateway.managers.GatewayKernelManager"
CELL_TIMEOUT_SECONDS = 60


def start_options(kernelspec: str) -> dict[str, Any]:
    """What ElyraEngine hands to the manager's start_kernel, which takes the kernelspec's name from nowhere else."""
    return {"env": {"KERNEL_WORKING_DIR": os.getcwd()}, "kernel_name": kernelspec, "path": None}


class GatewayEngine(NBClientEngine):
    """Papermill's own engine with the gateway's kernel manager, which is what ElyraEngine is."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        options = {
            key: value for key, value in options.items() if key not in {"start_timeout", "execution_timeout", "log_output"}
        }
        client = PapermillNotebookClient(
            nb_man, kernel_name=kernel_name, kernel_manager_class=MANAGER, timeout=CELL_TIMEOUT_SECONDS, **options
        )
        return client.execute(**start_options(kernel_name))


def with_nbclient(path: str, kernelspec: str) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, kernel_name=kernelspec, kernel_manager_class=MANAGER, timeout=CELL_TIMEOUT_SECONDS)
    try:
        client.execute(**start_options(kernelspec))
    finally:
        nbformat.write(notebook, path)


def with_papermill(path: str, kernelspec: str, parameters: dict[str, Any]) -> None:
    papermill_engines.register("gateway", GatewayEngine)
    execute_notebook(path, path, parameters=parameters, engine_name="gateway", kernel_name=kernelspec, progress_bar=False)


def main() -> None:
    how, path, kernelspec, *rest = sys.argv[1:]
    assert GatewayClient.instance().gateway_enabled, "JUPYTER_GATEWAY_URL is not set"
    error = None
    try:
        if how == "nbclient":
            with_nbclient(path, kernelspec)
        else:
            with_papermill(path, kernelspec, json.loads(rest[0]) if rest else {})
    except Exception as caught:  # noqa: BLE001 - whatever the client raises is the answer.
        error = {"type": type(caught).__name__, "name": getattr(caught, "ename", ""), "text": str(caught)}
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    print(json.dumps({"error": error, "outputs": [cell.outputs for cell in cells]}))


if __name__ == "__main__":
    main()
