"""`scripts/bench launch`: POST /api/kernels → WebSocket → result of the first cell.

Each claim is a new HTTP connection, a new kernel and a new WebSocket; the cell is sent as soon as the WebSocket is open. Between
claims, unmeasured, the kernel is deleted and the pool fills up again, as it does when users do not all come in the same second.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from jupyter_client import KernelManager

from bench._client import Direct, Http
from bench._progress import Progress
from bench._report import Goal, Panel, Report, median, milliseconds, percentile
from bench._systems import (
    CELL,
    DIRECT,
    OURS,
    RESULT,
    STOCK,
    Kernel,
    connection_information,
    ours,
    stock,
    wait_for_pool,
)
from tests.servers import Gateway, StockGateway, closing

PHASES = ("POST", "WebSocket open", "output", "idle")
POOL_SIZE = 4
ROUNDS = 10


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: claims of our gateway; stock Enterprise Gateway and jupyter_client launch one for every twenty."""
    per_round = max(1, samples // ROUNDS)
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    inside: dict[str, list[float]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    gateway, other = ours(place, pool_size=POOL_SIZE), stock(place)
    with closing(gateway, other), progress.task("launch", total=ROUNDS * (per_round + 2)) as step:
        for _ in range(ROUNDS):
            for _ in range(per_round):
                wait_for_pool(gateway, ready=POOL_SIZE)
                kernel = _claim(gateway, times[OURS])
                launch = _launch_report(kernel)
                outcomes["hit" if launch["hit"] else f"miss: {launch['miss_reason']}"] += 1
                for name, seconds in launch["phases"].items():
                    inside[name].append(seconds)
                kernel.delete()
                step()
            _claim(other, times[STOCK]).delete()
            step()
            _launch_directly(times[DIRECT])
            step()
    return _report(times, inside, outcomes)


def _claim(gateway: Gateway | StockGateway, times: dict[str, list[float]]) -> Kernel:
    began = time.perf_counter()
    kernel = Kernel(gateway)
    times["POST"].append(time.perf_counter() - began)
    channels = kernel.channels()
    times["WebSocket open"].append(time.perf_counter() - began)
    cell = channels.cell(CELL)
    times["output"].append(cell.output - began)
    times["idle"].append(cell.idle - began)
    channels.close()
    assert cell.text == RESULT, cell.text
    return kernel


def _launch_directly(times: dict[str, list[float]]) -> None:
    began = time.perf_counter()
    manager = KernelManager()
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        times["POST"].append(time.perf_counter() - began)
        direct = Direct(connection_information(manager))
        direct.wait_ready()
        times["WebSocket open"].append(time.perf_counter() - began)
        cell = direct.cell(CELL)
        times["output"].append(cell.output - began)
        times["idle"].append(cell.idle - began)
        direct.close()
        assert cell.text == RESULT, cell.text
    finally:
        manager.shutdown_kernel(now=True)


def _launch_report(kernel: Kernel) -> dict[str, Any]:
    http = Http(port=kernel.gateway.port, token=kernel.gateway.token)
    launch: dict[str, Any] = http.call("GET", f"/api/egknative/kernels/{kernel.id}")["launch"]
    http.close()
    return launch


def _report(times: dict[str, dict[str, list[float]]], inside: dict[str, list[float]], outcomes: Counter[str]) -> Report:
    rows = [
        (
            name,
            str(len(phases["idle"])),
            *(f"{milliseconds(median(phases[p]))} / {milliseconds(percentile(phases[p], 0.99))}" for p in PHASES),
        )
        for name, phases in times.items()
    ]
    mine, other = times[OURS]["output"], times[STOCK]["output"]
    claims = sum(outcomes.values())
    notes = [
        "Milliseconds since the POST was sent, p50 / p99. For jupyter_client POST starts the process, and WebSocket open "
        "is the kernel's first answer.",
        f"Of {claims} claims: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}.",
        "Inside the gateway, p50 in ms: "
        + ", ".join(f"{name} {milliseconds(median(seconds))}" for name, seconds in sorted(inside.items()))
        + ".",
    ]
    return Report(
        name="launch",
        title="Launch: POST /api/kernels to the result of the first cell",
        columns=("system", "launches", *PHASES),
        rows=rows,
        goals=(
            Goal(name="claim to first result, p50", value=median(mine) * 1000, goal=25, unit="ms"),
            Goal(name="claim to first result, p99", value=percentile(mine, 0.99) * 1000, goal=100, unit="ms"),
            Goal(
                name="times faster than stock EG's local launch, p50", value=median(other) / median(mine), goal=40, at_most=False
            ),
        ),
        panels=(
            Panel(
                title="POST to first result",
                unit="milliseconds",
                samples={name: [s * 1000 for s in phases["output"]] for name, phases in times.items()},
                logarithmic=True,
                goal=25,
            ),
            Panel(
                title=f"{OURS}, phase by phase",
                unit="milliseconds",
                samples={p: [s * 1000 for s in times[OURS][p]] for p in PHASES},
            ),
        ),
        samples={"seconds": times, "inside": inside, "outcomes": outcomes},
        notes=notes,
    )
