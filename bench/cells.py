"""`scripts/bench cells`: one warm cell through a gateway ÷ the same cell in the same kernel by direct ZeroMQ.

The ways take turns in blocks of ten cells, so that a slow moment of the machine hits all of them. The WebSocket is open only in
its own blocks, and direct ZeroMQ connects once. All clients are blocking and decode no more than they need.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from bench._client import V1, Cell, Direct, connection_of
from bench._progress import Progress
from bench._report import Goal, Panel, Report, median, milliseconds, percentile
from bench._systems import DIRECT, OURS, STOCK, Kernel, direct_kernel, kernel_of, ours, stock
from tests.servers import closing

BLOCK = 10
CODE = "print(1)"
WAYS = {"text": None, "v1": V1}
ZEROMQ = "direct ZeroMQ"
PARTS: dict[str, Callable[[Cell], float]] = {"output": lambda cell: cell.output_seconds, "idle": lambda cell: cell.idle_seconds}


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: cells of each way and system."""
    blocks = max(1, samples // BLOCK)
    cells: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    gateway, other = ours(place, pool_size=1), stock(place)
    with (
        closing(gateway, other),
        kernel_of(gateway) as mine,
        kernel_of(other) as stocks,
        direct_kernel() as (_manager, plain),
        progress.task("cells", total=blocks * 3) as step,
    ):
        directs = {OURS: _direct(mine), STOCK: _direct(stocks)}
        for _ in range(blocks):
            for name, kernel in ((OURS, mine), (STOCK, stocks)):
                _block(directs[name], cells[name][ZEROMQ])
                for way, subprotocol in WAYS.items():
                    _block_through(kernel, subprotocol, cells[name][way])
                step()
            _block(plain, cells[DIRECT][ZEROMQ])
            step()
        for direct in directs.values():
            direct.close()
    return _report(cells)


def _direct(kernel: Kernel) -> Direct:
    channels = kernel.channels()
    direct = Direct(connection_of(channels))
    channels.close()
    direct.wait_ready()
    return direct


def _block(direct: Direct, cells: list[Cell]) -> None:
    direct.drain()
    direct.cell(CODE)  # the first after a pause is not a warm one, on either way
    cells.extend(direct.cell(CODE) for _ in range(BLOCK))


def _block_through(kernel: Kernel, subprotocol: str | None, cells: list[Cell]) -> None:
    channels = kernel.channels(subprotocol=subprotocol)
    channels.cell(CODE)
    cells.extend(channels.cell(CODE) for _ in range(BLOCK))
    channels.close()


def _report(cells: dict[str, dict[str, list[Cell]]]) -> Report:
    seconds = {
        name: {way: {part: [get(cell) for cell in taken] for part, get in PARTS.items()} for way, taken in ways.items()}
        for name, ways in cells.items()
    }
    ratios = {
        (name, way, part): median(parts[part]) / median(seconds[name][ZEROMQ][part])
        for name, ways in seconds.items()
        for way, parts in ways.items()
        for part in PARTS
    }
    rows = [
        (
            name,
            way,
            str(len(parts["idle"])),
            *(f"{milliseconds(median(parts[part]))} / {milliseconds(percentile(parts[part], 0.99))}" for part in PARTS),
            *(f"{ratios[name, way, part]:.2f}" for part in PARTS),
        )
        for name, ways in seconds.items()
        for way, parts in ways.items()
    ]
    return Report(
        name="cells",
        title="A warm cell, request to first output and to idle",
        columns=("system", "way", "cells", "output ms", "idle ms", "output ÷ direct", "idle ÷ direct"),
        rows=rows,
        goals=[
            Goal(name=f"{part} through the gateway ({way}) ÷ direct, p50", value=ratios[OURS, way, part], goal=1.25)
            for way in WAYS
            for part in PARTS
        ],
        panels=[
            Panel(
                title=f"request → {part}",
                unit="milliseconds",
                samples={
                    f"{name}, {way}": [s * 1000 for s in parts[part]]
                    for name, ways in seconds.items()
                    for way, parts in ways.items()
                },
                logarithmic=True,
            )
            for part in PARTS
        ],
        samples=seconds,
        notes=["p50 / p99. Each system's ways run in one kernel of that system, in turns of ten cells."],
    )
