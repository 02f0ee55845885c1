"""`scripts/bench loop`: trivial requests per second of a gateway with kernels ÷ of the same gateway without any.

Two gateways of a kind run side by side, one with kernels and one with none (and no pool), and are asked in turns, so that a
slow moment of the machine hits both. One client, one kept-alive connection each, GET /api. Every kernel has a WebSocket open and
is idle.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench._client import Channels, Http
from bench._distributed import KERNELSPEC as DISTRIBUTED
from bench._distributed import DistributedGateway, DistributedOurs
from bench._progress import Progress
from bench._report import Goal, Panel, Report, median
from bench._systems import CELL, Kernel, wait_for_pool
from tests.servers import Gateway, StockGateway, closing

SLICE_SECONDS = 0.4
COUNTS = (1, 10, 50)
POOL_SIZE = 2
OURS = "eg-knative"
OURS_REMOTE = "eg-knative, EG's remote proxy"
STOCK_REMOTE = "stock EG, EG's remote proxy"


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: pairs of slices, one without and one with kernels, for every number of kernels."""
    with_pool = Gateway(directory=place / "kernels", pool_size=POOL_SIZE)
    results: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with progress.task("loop", total=samples * (len(COUNTS) + 2)) as step, contextlib.ExitStack() as stack:
        none = Gateway(directory=place / "none", pool_size=0)
        stack.enter_context(closing(none, with_pool))
        kernels = stack.enter_context(_kernels())
        for count in COUNTS:
            while len(kernels) < count:
                kernels.append(_connected(with_pool))
            wait_for_pool(with_pool, ready=POOL_SIZE)
            results[OURS, count] = list(_pairs(none, with_pool, samples, step))
        for kernel, channels in kernels:
            channels.close()
            kernel.delete()
        kernels.clear()
        remote = DistributedOurs(directory=place / "remote")
        stock_none, stock = StockGateway(directory=place / "stock"), DistributedGateway(directory=place / "stock-remote")
        stack.enter_context(closing(remote, stock_none, stock))
        for name, without, with_one in ((OURS_REMOTE, none, remote), (STOCK_REMOTE, stock_none, stock)):
            kernels.append(_connected(with_one))
            results[name, 1] = list(_pairs(without, with_one, samples, step))
    return _report(results)


@contextlib.contextmanager
def _kernels() -> Iterator[list[tuple[Kernel, Channels]]]:
    kernels: list[tuple[Kernel, Channels]] = []
    try:
        yield kernels
    finally:
        for kernel, channels in kernels:
            channels.close()
            with contextlib.suppress(OSError):  # its gateway may have ended before, with its kernels
                kernel.delete()


def _connected(gateway: Gateway | StockGateway) -> tuple[Kernel, Channels]:
    kernel = Kernel(gateway, kernelspec=DISTRIBUTED if isinstance(gateway, DistributedOurs) else None)
    channels = kernel.channels()
    channels.cell(CELL)
    return kernel, channels


def _pairs(
    without: Gateway | StockGateway, with_kernels: Gateway | StockGateway, samples: int, step: Callable[[], None]
) -> Iterator[tuple[float, float]]:
    clients = [Http(port=gateway.port, token=gateway.token) for gateway in (without, with_kernels)]
    for client in clients:
        _requests_per_second(client)
    for _ in range(samples):
        first, second = (_requests_per_second(client) for client in clients)
        yield first, second
        step()
    for client in clients:
        client.close()


def _requests_per_second(client: Http) -> float:
    count, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < SLICE_SECONDS:
        client.call("GET", "/api")
        count += 1
    return count / (now - began)


def _report(results: dict[tuple[str, int], list[tuple[float, float]]]) -> Report:
    ratios = {key: median([second / first for first, second in pairs]) for key, pairs in results.items()}
    rows = [
        (
            name,
            str(count),
            f"{median([first for first, _ in pairs]):,.0f}",
            f"{median([second for _, second in pairs]):,.0f}",
            f"{ratios[name, count]:.2f}",
        )
        for (name, count), pairs in results.items()
    ]
    asked = [(OURS, count) for count in COUNTS] + [(OURS_REMOTE, 1)]
    return Report(
        name="loop",
        title="Trivial requests per second, with idle kernels ÷ without",
        columns=("system", "kernels", "requests/s without", "requests/s with", "ratio"),
        rows=rows,
        goals=[Goal(name=f"{name}, {count} ÷ none", value=ratios[name, count], goal=0.9, at_most=False) for name, count in asked],
        panels=[
            Panel(
                title="requests/s with kernels ÷ without",
                unit="ratio",
                samples={
                    f"{name}, {count}": [second / first for first, second in pairs] for (name, count), pairs in results.items()
                },
                bars=True,
                goal=0.9,
            )
        ],
        samples={f"{name}, {count}": pairs for (name, count), pairs in results.items()},
        notes=[
            f"Median of the ratios of neighbouring slices of {SLICE_SECONDS} s. EG's remote proxy: DistributedProcessProxy with "
            "the stock launcher."
        ],
    )
