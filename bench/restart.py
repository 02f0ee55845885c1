"""`scripts/bench restart`: POST …/restart → result of the next cell, on the WebSocket that was open before.

The cell is sent when the restart is answered. It says whether the variables are gone, so that a restart that did nothing does
not count.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import websocket

from bench._client import Cell, Channels
from bench._progress import Progress
from bench._report import Goal, Panel, Report, median, milliseconds, percentile
from bench._systems import DIRECT, OURS, STOCK, Kernel, direct_kernel, kernel_of, ours, stock
from tests.servers import closing

CODE = "print('kept' if 'marker' in globals() else 'gone'); marker = 1"
PATIENCE_SECONDS = 30.0
"""How long a cell after a restart of stock Enterprise Gateway may take; past it the WebSocket is given up."""
PAUSE_SECONDS = 1.0
"""Before each restart, unmeasured: nobody restarts twice within a second."""
PHASES = ("restart answered", "output", "idle")
ROUNDS = 5


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: restarts of our gateway; the others do five."""
    each = max(1, samples // ROUNDS)
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    unanswered = 0
    gateway, other = ours(place, pool_size=1), stock(place)
    with (
        closing(gateway, other),
        kernel_of(gateway) as mine,
        kernel_of(other) as stocks,
        direct_kernel() as (manager, direct),
        progress.task("restart", total=ROUNDS * (each + 2)) as step,
    ):
        for _ in range(ROUNDS):
            # A new one for each round: who does not read for a minute, while another system is waited for, answers no ping.
            channels = mine.channels()
            channels.cell(CODE)
            for _ in range(each):
                time.sleep(PAUSE_SECONDS)
                _restart(mine, channels, times[OURS])
                step()
            channels.close()
            unanswered += not _restart_stock(stocks, times[STOCK])
            step()
            direct.cell(CODE)
            began = time.perf_counter()
            manager.restart_kernel(now=True)
            answered = time.perf_counter()
            direct.wait_ready()
            _note(times[DIRECT], began=began, answered=answered, cell=direct.cell(CODE))
            step()
    return _report(times, unanswered)


def _restart(kernel: Kernel, channels: Channels, times: dict[str, list[float]]) -> None:
    http = kernel.http()
    began = time.perf_counter()
    http.call("POST", f"/api/kernels/{kernel.id}/restart", {})
    answered = time.perf_counter()
    cell = channels.cell(CODE)
    http.close()
    _note(times, began=began, answered=answered, cell=cell)


def _restart_stock(kernel: Kernel, times: dict[str, list[float]]) -> bool:
    channels = kernel.channels(timeout=PATIENCE_SECONDS)
    try:
        channels.cell(CODE)
        _restart(kernel, channels, times)
    except websocket.WebSocketException:
        return False
    finally:
        channels.close()
    return True


def _note(times: dict[str, list[float]], *, began: float, answered: float, cell: Cell) -> None:
    assert cell.text == "gone\n", cell.text
    for phase, moment in zip(PHASES, (answered, cell.output, cell.idle), strict=True):
        times[phase].append(moment - began)


def _report(times: dict[str, dict[str, list[float]]], unanswered: int) -> Report:
    rows = [
        (
            name,
            str(len(times[name]["output"])),
            *(f"{milliseconds(median(times[name][p]))} / {milliseconds(percentile(times[name][p], 0.99))}" for p in PHASES),
        )
        for name in (OURS, STOCK, DIRECT)
    ]
    notes = ["Milliseconds since the restart was asked for, p50 / p99. For jupyter_client: restart_kernel(now=True), same ports."]
    if unanswered:
        notes.append(
            f"{STOCK}: {unanswered} of {ROUNDS} restarts left the WebSocket without an answer for {PATIENCE_SECONDS:.0f} s."
        )
    return Report(
        name="restart",
        title="Restart in place to the result of the next cell on the same WebSocket",
        columns=("system", "restarts", *PHASES),
        rows=rows,
        goals=[Goal(name="restart to next result, p50", value=median(times[OURS]["output"]) * 1000, goal=100, unit="ms")],
        panels=[
            Panel(
                title="restart → next result",
                unit="milliseconds",
                samples={name: [s * 1000 for s in phases["output"]] for name, phases in times.items() if phases["output"]},
                logarithmic=True,
                goal=100,
            )
        ],
        samples={"seconds": times, "unanswered": unanswered},
        notes=notes,
    )
