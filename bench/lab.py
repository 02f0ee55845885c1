"""`scripts/bench lab`: a real JupyterLab page in Chromium: notebook opened → kernel idle, first cell run → result on the page.

One JupyterLab for each gateway, a fresh notebook, browser profile and kernel for every sample. Times are taken in the page. With
stock Enterprise Gateway the kernel's status may not become idle before a cell has run: after five seconds the cell is run anyway.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import Browser
from playwright.sync_api import Error as PlaywrightError

from bench._client import Http
from bench._progress import Progress
from bench._report import Goal, Panel, Report, median, milliseconds, percentile
from bench._systems import OURS, STOCK, kernelspec_of, ours, stock, wait_for_pool
from tests.browser.driver import LabPage, browser
from tests.servers import Gateway, Lab, StockGateway, closing

PATIENCE_SECONDS = 100.0
IDLE_PATIENCE_SECONDS = 5.0
"""A person who sees no idle kernel after so long runs the cell all the same."""
POOL_SIZE = 2
STOCK_SAMPLES = 2
IDLE, RESULT, BOTH = "drawn → idle", "cell run → result", "drawn → first result"


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: notebooks with our gateway; stock Enterprise Gateway gets two."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    gateway, other = ours(place, pool_size=POOL_SIZE), stock(place)
    labs = {OURS: Lab(directory=place / "lab", gateway=gateway), STOCK: StockLab(directory=place / "lab-stock", gateway=other)}
    order = [OURS] * samples
    for number in range(min(STOCK_SAMPLES, samples)):
        order.insert((number + 1) * (samples // STOCK_SAMPLES + 1) - 1, STOCK)
    with closing(gateway, other, *labs.values()), browser() as chromium, progress.task("lab", total=len(order)) as step:
        for number, name in enumerate(order):
            if name == OURS:
                wait_for_pool(gateway, ready=POOL_SIZE)
            _open(chromium, labs[name], f"notebook-{number}.ipynb", times[name])
            step()
    return _report(times)


class StockLab(Lab):
    """JupyterLab with its own time-outs, as users of stock Enterprise Gateway have them: longer ones make it worse."""

    def environment(self) -> Mapping[str, str]:
        longer = {"JUPYTER_GATEWAY_REQUEST_TIMEOUT", "JUPYTER_GATEWAY_CONNECT_TIMEOUT"}
        return {name: value for name, value in super().environment().items() if name not in longer}


def _open(chromium: Browser, lab: Lab, name: str, times: dict[str, list[float]]) -> None:
    gateway = lab.gateway
    assert isinstance(gateway, (Gateway, StockGateway))
    lab.write_notebook(name, cells=["print(6 * 7)"], kernelspec=kernelspec_of(gateway))
    page = LabPage(browser=chromium, lab=lab, timeout=PATIENCE_SECONDS)
    try:
        page.open_notebook(name)
        drawn = time.perf_counter()
        try:
            page.page.set_default_timeout(IDLE_PATIENCE_SECONDS * 1000)
            times[IDLE].append(page.opening().idle_after_drawn)
        except PlaywrightError:
            times[IDLE].append(IDLE_PATIENCE_SECONDS)
        try:
            times[RESULT].append(page.run_and_wait(0, "42"))
        except PlaywrightError:
            times[RESULT].append(PATIENCE_SECONDS)
        times[BOTH].append(time.perf_counter() - drawn)
    finally:
        page.close()
        http = Http(port=gateway.port, token=gateway.token)
        for kernel in http.call("GET", "/api/kernels"):
            http.call("DELETE", f"/api/kernels/{kernel['id']}")
        http.close()


def _report(times: dict[str, dict[str, list[float]]]) -> Report:
    parts = (IDLE, RESULT, BOTH)
    rows = [
        (
            name,
            str(len(found[IDLE])),
            *(f"{milliseconds(median(found[p]))} / {milliseconds(percentile(found[p], 0.99))}" for p in parts),
        )
        for name, found in times.items()
    ]
    mine = times[OURS]
    return Report(
        name="lab",
        title="A real JupyterLab page",
        columns=("system", "notebooks", *parts),
        rows=rows,
        goals=(
            Goal(name="notebook drawn → kernel idle, p50", value=median(mine[IDLE]) * 1000, goal=300, unit="ms"),
            Goal(name="first cell run → result on the page, p50", value=median(mine[RESULT]) * 1000, goal=100, unit="ms"),
        ),
        panels=[
            Panel(
                title=part,
                unit="milliseconds",
                samples={name: [s * 1000 for s in found[part]] for name, found in times.items()},
                logarithmic=True,
                goal=goal,
            )
            for part, goal in ((IDLE, 300), (RESULT, 100))
        ],
        samples={"seconds": times},
        notes=[
            f"Milliseconds, p50 / p99. Without an idle kernel after {IDLE_PATIENCE_SECONDS:.0f} s the cell was run all the same; "
            f"a result that took longer than {PATIENCE_SECONDS:.0f} s was given up and counts as that."
        ],
    )
