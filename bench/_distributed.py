"""A gateway with the kernelspec `python_distributed`: stock launcher, Enterprise Gateway's DistributedProcessProxy, this machine.

With `remote_hosts` = localhost that proxy starts the launcher without ssh, and everything else is as on a cluster: response port,
encrypted payload, comm port. Used by the tests of the response port and by `scripts/bench loop`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench._stock_launcher import stock_launcher
from tests.servers import Gateway, StockGateway, free_port

KERNELSPEC = "python_distributed"
PROXY = "enterprise_gateway.services.processproxies.distributed.DistributedProcessProxy"


def write_kernelspec(directory: Path, *, launcher: str | None = None) -> None:
    """Write `kernels/python_distributed` below `directory`. `launcher`: another script than the stock one."""
    argv = [sys.executable, launcher or str(stock_launcher())]
    for option, value in (
        ("kernel-id", "{kernel_id}"),
        ("response-address", "{response_address}"),
        ("public-key", "{public_key}"),
        ("port-range", "{port_range}"),
        ("spark-context-initialization-mode", "none"),
    ):
        argv += [f"--RemoteProcessProxy.{option}", value]
    document = {
        "argv": argv,
        "display_name": "Python (distributed)",
        "language": "python",
        "metadata": {"process_proxy": {"class_name": PROXY, "config": {"remote_hosts": "localhost"}}},
    }
    kernelspec = directory / "kernels" / KERNELSPEC
    kernelspec.mkdir(parents=True, exist_ok=True)
    (kernelspec / "kernel.json").write_text(json.dumps(document))


class DistributedGateway(StockGateway):
    """Enterprise Gateway with that kernelspec: stock, or a program given by `program` that takes the same options."""

    def __init__(
        self, *, directory: Path, program: Sequence[str] | None = None, launcher: str | None = None, level: str = "INFO"
    ) -> None:
        super().__init__(directory=directory)
        self._level = level
        self.kernelspec = KERNELSPEC
        self.response_port = free_port()
        self._program = program
        (directory / "temporary").mkdir(exist_ok=True)
        write_kernelspec(directory, launcher=launcher)

    def command(self) -> Sequence[str]:
        program, *options = super().command()
        return [*(self._program or [program]), *options, f"--log-level={self._level}"]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **_environment(self.directory, response_port=self.response_port)}


class DistributedOurs(Gateway):
    """Our gateway, without a pool, with that kernelspec."""

    def __init__(self, *, directory: Path) -> None:
        super().__init__(directory=directory, pool_size=0)
        (directory / "temporary").mkdir(exist_ok=True)
        self.response_port = free_port()
        write_kernelspec(directory)

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **_environment(self.directory, response_port=self.response_port)}


def _environment(directory: Path, *, response_port: int) -> dict[str, str]:
    return {
        "JUPYTER_PATH": str(directory),
        "TMPDIR": str(directory / "temporary"),
        "EG_KERNEL_LOG_DIR": str(directory),
        "EG_RESPONSE_IP": "127.0.0.1",
        "EG_RESPONSE_PORT": str(response_port),
        "EG_RESPONSE_PORT_RETRIES": "0",
    }
