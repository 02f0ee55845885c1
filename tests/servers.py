"""The real servers that tests of the whole house talk to: our gateway, stock Enterprise Gateway, and JupyterLab.

Each runs as a process of its own in directories of the test's, on a free port of 127.0.0.1, and is ended with everything that it
started. Nothing of the user's Jupyter configuration is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
KERNELSPEC = "python_pooled_local"
USER = "tester"
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def lab_python() -> Path | None:
    """The Python of JupyterLab's own environment, or None where `scripts/test` has not made it."""
    python = ROOT / ".venv-lab" / "bin" / "python"
    return python if python.exists() else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(home: Path) -> dict[str, str]:
    """PATH, language and a home of the test's; nothing of the user's Jupyter."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH") if key in os.environ}
    return kept | {"HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "JUPYTER_PLATFORM_DIRS": "0"}


def gateway_environment(gateway: Server) -> dict[str, str]:
    """What points a jupyter_server 2 at a gateway, as scripts/run does it."""
    return {
        "JUPYTER_GATEWAY_URL": gateway.url,
        "JUPYTER_GATEWAY_AUTH_TOKEN": gateway.token,
        "JUPYTER_GATEWAY_REQUEST_TIMEOUT": "120",
        "JUPYTER_GATEWAY_RETRY_INTERVAL": "0.1",
        "JUPYTER_GATEWAY_RETRY_INTERVAL_MAX": "5",
        "JUPYTER_GATEWAY_RETRY_MAX": "120",
        "KERNEL_USERNAME": USER,
    }


def _die_with_the_tests() -> None:
    """SIGTERM when the test run is killed (Linux only), so that it leaves no server behind."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGTERM)


class Server:
    """One server process that can be ended and started again on the same port."""

    ready_path = "/"

    def __init__(self, *, directory: Path, token: str) -> None:
        self.directory = directory
        self.token = token
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "server.log"
        self._starts = 0
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        raise NotImplementedError

    def start(self, *, timeout: float = 60.0) -> None:
        """Start and wait until it is ready. The log is appended to."""
        self._starts += 1
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command(),
                env=dict(self.environment()),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_the_tests,
            )
        deadline = time.monotonic() + timeout
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"{self.command()[0]} ended with exit code {self.process.returncode}:\n{self.tail()}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                self.request("GET", self.ready_path)
                return
            if time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise AssertionError(f"{self.command()[0]} was not ready within {timeout} s:\n{self.tail()}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 30.0) -> int:
        """Send the signal and wait; the exit code, -9 when it had to be killed."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait()

    def request(self, method: str, path: str, body: Any = None, *, timeout: float = 60.0) -> Any:
        """One call with the token; the decoded JSON, or None without a body. Raises urllib.error.HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with NO_PROXY.open(request, timeout=timeout) as answer:
            content = answer.read()
        with contextlib.suppress(ValueError):
            return json.loads(content)
        return None

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""


class Gateway(Server):
    """`jupyter egknative` with its shipped kernelspecs and a run directory of the test's."""

    ready_path = "/readyz"

    def __init__(self, *, directory: Path, pool_size: int = 2, token: str = "gateway-token", options: Sequence[str] = ()) -> None:
        super().__init__(directory=directory, token=token)
        self.pool_size = pool_size
        self.options = tuple(options)
        self.run_directory = directory / "run"

    def command(self) -> Sequence[str]:
        program = str(Path(sys.executable).parent / "jupyter-egknative")
        return [program, f"--port={self.port}", f"--pool-size={self.pool_size}", *self.options]

    def environment(self) -> Mapping[str, str]:
        return clean_environment(self.directory / "home") | {
            "EG_AUTH_TOKEN": self.token,
            "EG_PORT_RETRIES": "0",
            "EG_KNATIVE_RUN_DIRECTORY": str(self.run_directory),
        }

    def launchers(self) -> list[psutil.Process]:
        """The launcher processes that belong to this gateway's run directory, found in the process table."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.run_directory) in argument for argument in process.cmdline()):
                    found.append(process)
        return found

    def close(self) -> None:
        """End it with its kernels, whatever state a test left it in."""
        self.stop(signal.SIGINT)
        for process in self.launchers():
            with contextlib.suppress(psutil.Error):
                process.terminate()
        psutil.wait_procs(self.launchers(), timeout=10)


class StockGateway(Server):
    """Stock `jupyter enterprisegateway` with a plain local ipykernel: what we compare with."""

    ready_path = "/api/kernelspecs"

    def __init__(self, *, directory: Path, token: str = "gateway-token") -> None:
        super().__init__(directory=directory, token=token)
        self.kernelspec = "python3"

    def command(self) -> Sequence[str]:
        program = str(Path(sys.executable).parent / "jupyter-enterprisegateway")
        return [program, f"--port={self.port}", "--EnterpriseGatewayApp.list_kernels=True"]

    def environment(self) -> Mapping[str, str]:
        return clean_environment(self.directory / "home") | {"EG_AUTH_TOKEN": self.token, "EG_PORT_RETRIES": "0"}

    def close(self) -> None:
        self.stop(signal.SIGINT)


class Lab(Server):
    """JupyterLab from its own environment, pointed at a gateway as a user's is; with None it runs its own kernels."""

    ready_path = "/api/status"

    def __init__(self, *, directory: Path, gateway: Server | None, token: str = "lab-token") -> None:
        super().__init__(directory=directory, token=token)
        self.gateway = gateway
        self.notebooks = directory / "notebooks"
        self.notebooks.mkdir()
        settings = directory / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        quiet = {"fetchNews": "false", "checkForUpdates": False}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))

    def command(self) -> Sequence[str]:
        options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0"]
        options += [f"--ServerApp.root_dir={self.notebooks}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
        return [str(lab_python()), "-m", "jupyterlab", *options]

    def environment(self) -> Mapping[str, str]:
        env = clean_environment(self.directory / "home") | {
            "JUPYTER_TOKEN": self.token,
            "JUPYTERLAB_SETTINGS_DIR": str(self.directory / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(self.directory / "workspaces"),
        }
        return env | gateway_environment(self.gateway) if self.gateway else env

    def write_notebook(self, name: str, *, cells: Sequence[str], kernelspec: str) -> Path:
        """A notebook file that opens with that kernel without a question."""
        code = [
            {
                "cell_type": "code",
                "id": f"cell-{number}",
                "metadata": {},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for number, source in enumerate(cells)
        ]
        metadata = {"kernelspec": {"name": kernelspec, "display_name": kernelspec, "language": "python"}}
        path = self.notebooks / name
        path.write_text(json.dumps({"cells": code, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
        return path

    def close(self) -> None:
        self.stop(signal.SIGTERM)


@contextlib.contextmanager
def closing(*servers: Gateway | StockGateway | Lab) -> Iterator[None]:
    """Start them in order; end them in the other order whatever happens."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.callback(server.close)
            server.start()
        yield
