"""scripts/run: from a fresh clone to JupyterLab with warm kernels, in one command.

Sets up what is missing, starts the gateway with its shipped kernelspecs and JupyterLab pointed at it, prints the address to
open, and waits. Ctrl-C, SIGTERM and a closed terminal end everything that it started, kernels included.
"""

from __future__ import annotations

import argparse
import getpass
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from house.environments import ROOT, SetupError, environment, prepare
from house.processes import Server, ServerError, any_free_port, port_is_free
from house.progress import Step, complain

GATEWAY_READY_SECONDS = 120.0
RESTART_PAUSE_SECONDS = 10.0
"""A gateway that ends sooner than this after its start is not started again."""
LAB_READY_SECONDS = 60.0
LAB_GRACE_SECONDS = 15.0
GATEWAY_GRACE_SECONDS = 20.0
CLIENT_TIMEOUT_SECONDS = 120
"""How long JupyterLab waits for an answer of the gateway; longer than a kernel may take to launch."""
RECONNECTING = {
    "JUPYTER_GATEWAY_RETRY_INTERVAL": "0.1",
    "JUPYTER_GATEWAY_RETRY_INTERVAL_MAX": "5",
    "JUPYTER_GATEWAY_RETRY_MAX": "120",
}
"""JupyterLab comes back to a gateway that was away for up to ten minutes; by itself it gives up after half a minute."""
DEFAULT_KERNELSPEC = "python_pooled_local"


class Stopped(KeyboardInterrupt):
    """A signal asked scripts/run to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main(argv: list[str]) -> int:
    options = _parse(argv)
    servers: list[Server] = []
    _on_signal(_raise_stopped)
    try:
        ports = _choose_ports(options)
        _start(options, ports, servers)
        return _watch(servers)
    except Stopped as stopped:
        print(f"\n{stopped}: stopping …", flush=True)
        return 128 + stopped.number
    except (SetupError, ServerError) as error:
        complain(f"scripts/run: {error}")
        return 1
    finally:
        _stop(servers)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/run", description="Start JupyterLab with warm kernels on this machine.")
    parser.add_argument("--port", type=int, default=8888, help="port of the gateway on 127.0.0.1; 0: any (default 8888)")
    parser.add_argument("--lab-port", type=int, default=8889, help="port of JupyterLab on 127.0.0.1; 0: any (default 8889)")
    parser.add_argument(
        "--pool-size", type=int, default=2, help="kernels kept ready for each kernelspec that sets no number (default 2)"
    )
    parser.add_argument("--no-lab", action="store_true", help="start the gateway alone")
    parser.add_argument(
        "--notebook-dir", type=Path, default=Path.cwd(), help="JupyterLab's root directory (default: the current one)"
    )
    options = parser.parse_args(argv)
    for name in ("port", "lab_port"):
        if not 0 <= getattr(options, name) <= 65535:
            parser.error(f"--{name.replace('_', '-')} must be from 0 to 65535")
    if options.pool_size < 0:
        parser.error("--pool-size must not be below 0")
    if not options.notebook_dir.is_dir():
        parser.error(f"--notebook-dir: {options.notebook_dir} is not a directory")
    return options


def _choose_ports(options: argparse.Namespace) -> dict[str, int]:
    wanted = {"port": options.port} if options.no_lab else {"port": options.port, "lab-port": options.lab_port}
    ports: dict[str, int] = {}
    for option, port in wanted.items():
        chosen = port or any_free_port()
        if chosen in ports.values() or not port_is_free(chosen):
            raise ServerError(f"port {chosen} is taken. Choose another with --{option}, or 0 for any.")
        ports[option] = chosen
    return ports


def _start(options: argparse.Namespace, ports: dict[str, int], servers: list[Server]) -> None:
    began = time.monotonic()
    python = prepare(directory=".venv", lock="gateway", own_packages=True)
    lab_python = None if options.no_lab else prepare(directory=".venv-lab", lock="lab", own_packages=False)

    token = os.environ.get("EG_AUTH_TOKEN") or secrets.token_hex(24)
    url = f"http://127.0.0.1:{ports['port']}"
    with Step("Starting the gateway"):
        gateway = _gateway(python=python, port=ports["port"], pool_size=options.pool_size, token=token)
        servers.append(gateway)
        if lab_python:
            lab_token = os.environ.get("JUPYTER_TOKEN") or secrets.token_hex(24)
            lab = _lab(
                python=lab_python,
                port=ports["lab-port"],
                token=lab_token,
                gateway=url,
                gateway_token=token,
                root=options.notebook_dir,
            )
            servers.append(lab)
        gateway.wait_until_ready(url=f"{url}/readyz", token=token, timeout=GATEWAY_READY_SECONDS)
    lines = [f"Ready after {time.monotonic() - began:.1f} s. Ctrl-C stops everything, kernels included.", ""]
    if lab_python:
        lab_url = f"http://127.0.0.1:{ports['lab-port']}"
        with Step("Starting JupyterLab"):
            lab.wait_until_ready(url=f"{lab_url}/api/status", token=lab_token, timeout=LAB_READY_SECONDS)
        lines += [f"  Open     {lab_url}/lab?token={lab_token}"]
    lines += [f"  Gateway  {url}/?token={token}"]
    lines += [f"  Log      {server.log}" for server in servers]
    print("\n" + "\n".join(lines), flush=True)


def _gateway(*, python: Path, port: int, pool_size: int, token: str) -> Server:
    command: list[str | Path] = [python.parent / "jupyter-egknative", f"--port={port}", f"--pool-size={pool_size}"]
    env = environment() | {"EG_AUTH_TOKEN": token, "EG_PORT_RETRIES": "0", "EG_DEFAULT_KERNEL_NAME": DEFAULT_KERNELSPEC}
    log = ROOT / ".run" / f"gateway-{port}.log"
    return Server(title="The gateway", command=command, env=env, directory=ROOT, log=log, stop_signal=signal.SIGINT)


def _lab(*, python: Path, port: int, token: str, gateway: str, gateway_token: str, root: Path) -> Server:
    command: list[str | Path] = [
        python,
        "-m",
        "jupyterlab",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--ip=127.0.0.1",
        "--no-browser",
    ]
    command += [f"--ServerApp.root_dir={root.resolve()}"]
    if os.geteuid() == 0:
        command += ["--allow-root"]
    user = getpass.getuser()
    env = environment() | {
        "JUPYTER_TOKEN": token,
        "JUPYTER_GATEWAY_URL": gateway,
        "JUPYTER_GATEWAY_AUTH_TOKEN": gateway_token,
        "JUPYTER_GATEWAY_REQUEST_TIMEOUT": str(CLIENT_TIMEOUT_SECONDS),
        **RECONNECTING,
    }
    # Enterprise Gateway refuses to start kernels in root's name.
    env.setdefault("KERNEL_USERNAME", user if user != "root" else "local")
    log = ROOT / ".run" / f"lab-{port}.log"
    return Server(title="JupyterLab", command=command, env=env, directory=root, log=log, stop_signal=signal.SIGTERM)


def _watch(servers: list[Server]) -> int:
    """Until a signal comes. A gateway that ended is started again: kernels outlive it, and JupyterLab comes back by itself."""
    while True:
        for server in servers:
            if server.alive():
                continue
            ended = f"{server.title} ended by itself with exit code {server.process.returncode}"
            if server.title != "The gateway" or time.monotonic() - server.started_at < RESTART_PAUSE_SECONDS:
                raise ServerError(f"{ended}.{server.last_words()}")
            print(f"{ended} and is started again; kernels are kept. Log: {server.log}", flush=True)
            server.start()
        time.sleep(0.5)


def _stop(servers: list[Server]) -> None:
    """JupyterLab first: it shuts its kernels down through the gateway, which then ends the rest."""
    _on_signal(_be_patient)
    for server in reversed(servers):
        grace = GATEWAY_GRACE_SECONDS if server.title == "The gateway" else LAB_GRACE_SECONDS
        if server.alive() and not server.stop(grace_seconds=grace):
            complain(f"scripts/run: {server.title} did not stop within {grace:.0f} s and was killed. See {server.log}")
    if servers:
        print("Stopped.", flush=True)


def _on_signal(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    del frame
    raise Stopped(number)


def _be_patient(number: int, frame: FrameType | None) -> None:
    del number, frame
    print("Still stopping; it takes a few seconds at most.", file=sys.stderr, flush=True)
