"""What every benchmark compares: our gateway, stock Enterprise Gateway, and jupyter_client straight to an ipykernel."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_client import KernelManager

from bench._client import Channels, Direct, Http
from tests.servers import KERNELSPEC, USER, Gateway, StockGateway

OURS = "eg-knative"
STOCK = "stock EG, local"
DIRECT = "jupyter_client"
CELL = "print(6 * 7)"
RESULT = "42\n"


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    """A directory for the servers' files, short enough for Unix sockets in it, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="eg-bench-", ignore_cleanup_errors=True) as path:
        yield Path(path)


def ours(place: Path, *, pool_size: int, options: tuple[str, ...] = ()) -> Gateway:
    """Our gateway with its shipped kernelspecs."""
    return Gateway(directory=place / "ours", pool_size=pool_size, options=options)


def stock(place: Path) -> StockGateway:
    """`jupyter enterprisegateway` with the environment's own ipykernel, as a local process."""
    return StockGateway(directory=place / "stock")


def kernelspec_of(gateway: Gateway | StockGateway) -> str:
    return gateway.kernelspec if isinstance(gateway, StockGateway) else KERNELSPEC


class Kernel:
    """One kernel of a gateway, deleted at the end."""

    def __init__(self, gateway: Gateway | StockGateway, *, kernelspec: str | None = None) -> None:
        self.gateway = gateway
        body = {"name": kernelspec or kernelspec_of(gateway), "env": {"KERNEL_USERNAME": USER}}
        http = self.http()
        self.id: str = http.call("POST", "/api/kernels", body)["id"]
        http.close()

    def http(self) -> Http:
        return Http(port=self.gateway.port, token=self.gateway.token)

    def channels(self, *, subprotocol: str | None = None, timeout: float = 120.0) -> Channels:
        return Channels(
            port=self.gateway.port, token=self.gateway.token, kernel_id=self.id, subprotocol=subprotocol, timeout=timeout
        )

    def delete(self) -> None:
        http = self.http()
        http.call("DELETE", f"/api/kernels/{self.id}")
        http.close()


@contextlib.contextmanager
def kernel_of(gateway: Gateway | StockGateway) -> Iterator[Kernel]:
    kernel = Kernel(gateway)
    try:
        yield kernel
    finally:
        kernel.delete()


@contextlib.contextmanager
def direct_kernel() -> Iterator[tuple[KernelManager, Direct]]:
    """A plain ipykernel started by jupyter_client, ready, and a client by ZeroMQ."""
    manager = KernelManager()
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    direct = None
    try:
        direct = Direct(connection_information(manager))
        direct.wait_ready()
        yield manager, direct
    finally:
        if direct is not None:
            direct.close()
        manager.shutdown_kernel(now=True)


def connection_information(manager: KernelManager) -> dict[str, Any]:
    found: dict[str, Any] = manager.get_connection_info()
    return {**found, "key": found["key"].decode()}


def wait_for_pool(gateway: Gateway, *, ready: int, timeout: float = 120.0) -> None:
    """Until `ready` members wait and none boots, so that a claim is not measured beside a refill."""
    http = Http(port=gateway.port, token=gateway.token)
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            pool = http.call("GET", "/api/egknative/pools")["pools"][KERNELSPEC]
            if pool["ready"] >= ready and pool["booting"] == 0:
                return
            time.sleep(0.02)
    finally:
        http.close()
    raise TimeoutError(f"the pool has not {ready} ready members after {timeout:g} s: {pool}")
