"""`scripts/bench memory`: idle members of the pool per GB ÷ plain ipykernels per GB, pandas and numpy imported in both.

Memory is the proportional set size (Linux, /proc/PID/smaps_rollup): a page that several processes share counts once in all.
Ours is everything that the gateway started: launchers, kernels, and the zygote that they are forked from. The gateway itself is
not counted, neither is the process that starts the plain kernels.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil
from jupyter_client import KernelManager

from bench._client import Direct
from bench._progress import Progress
from bench._report import ROOT, Goal, Panel, Report
from bench._systems import OURS, connection_information, kernel_of, wait_for_pool
from tests.servers import KERNELSPEC, Gateway, closing

PLAIN = "plain ipykernel"
PRE_IMPORT = ["numpy", "pandas"]
IMPORTS = f"import {', '.join(PRE_IMPORT)}"
LOADED = f"import sys; print(all(name in sys.modules for name in {PRE_IMPORT}))"
SETTLE_SECONDS = 2.0
FEW = 8
GIGABYTE = 1e9


def run(*, place: Path, samples: int, progress: Progress) -> Report:
    """`samples`: kernels of each kind in the larger pool, which should fill about a gigabyte; the smaller one has eight."""
    measured: dict[tuple[str, int], dict[str, int]] = {}
    counts = sorted({min(FEW, samples), samples})
    with progress.task("memory", total=sum(counts) + 2 * len(counts)) as step:
        for count in counts:
            measured[OURS, count] = _members(place / f"ours-{count}", count, step)
            measured[PLAIN, count] = _plain(count, step)
    return _report(measured, largest=samples)


def _members(place: Path, count: int, step: Callable[[], None]) -> dict[str, int]:
    gateway = Warm(directory=place, pool_size=count)
    with closing(gateway):
        wait_for_pool(gateway, ready=count)
        time.sleep(SETTLE_SECONDS)
        members = _proportional(_family(gateway))
        step()
        with kernel_of(gateway) as kernel:
            channels = kernel.channels()
            loaded = channels.cell(LOADED).text.strip() == "True"
            channels.close()
        step()
    if not loaded:
        raise RuntimeError("The pool's kernels have not imported numpy and pandas: the comparison would mean nothing")
    return members


class Warm(Gateway):
    """Our gateway, whose shipped kernelspec imports numpy and pandas beforehand."""

    def environment(self) -> Mapping[str, str]:
        shipped = json.loads((ROOT / "kernelspecs" / KERNELSPEC / "kernel.json").read_text())
        shipped["metadata"]["process_proxy"]["config"]["pool"]["pre_import"] = PRE_IMPORT
        changed = self.directory / "share" / "kernels" / KERNELSPEC
        changed.mkdir(parents=True, exist_ok=True)
        (changed / "kernel.json").write_text(json.dumps(shipped))
        return {**super().environment(), "JUPYTER_PATH": str(self.directory / "share")}


def _family(gateway: Gateway) -> Iterable[psutil.Process]:
    assert gateway.process is not None
    found = {process.pid: process for process in psutil.Process(gateway.process.pid).children(recursive=True)}
    for launcher in gateway.launchers():
        if launcher.pid != gateway.process.pid:
            found |= {process.pid: process for process in (launcher, *launcher.children(recursive=True))}
    return found.values()


def _proportional(processes: Iterable[psutil.Process]) -> dict[str, int]:
    """Bytes, and their number, by what the process says it is."""
    sizes: dict[str, int] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            sizes[f"{process.pid} {' '.join(process.cmdline())[-60:]}"] = process.memory_full_info().pss
    return sizes


def _plain(count: int, step: Callable[[], None]) -> dict[str, int]:
    managers, clients = [], []
    try:
        for _ in range(count):
            manager = KernelManager()
            manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            managers.append(manager)
            client = Direct(connection_information(manager))
            clients.append(client)
            client.wait_ready()
            client.cell(IMPORTS)
            step()
        time.sleep(SETTLE_SECONDS)
        trees = [psutil.Process(manager.kernel.pid) for manager in managers]
        return _proportional(process for tree in trees for process in (tree, *tree.children(recursive=True)))
    finally:
        for client in clients:
            client.close()
        for manager in managers:
            manager.shutdown_kernel(now=True)


def _report(measured: Mapping[tuple[str, int], dict[str, int]], *, largest: int) -> Report:
    each = {key: sum(found.values()) / key[1] for key, found in measured.items()}
    rows = [
        (
            name,
            str(count),
            str(len(found)),
            f"{sum(found.values()) / 1e6:,.0f}",
            f"{each[name, count] / 1e6:.1f}",
            f"{GIGABYTE / each[name, count]:.1f}",
        )
        for (name, count), found in measured.items()
    ]
    ratio = each[PLAIN, largest] / each[OURS, largest]
    return Report(
        name="memory",
        title="Memory of idle kernels with numpy and pandas imported",
        columns=("system", "kernels", "processes", "MB in all (PSS)", "MB each", "kernels per GB"),
        rows=rows,
        goals=[
            Goal(name=f"idle members per GB ÷ plain ipykernels per GB, {largest} of each", value=ratio, goal=2, at_most=False)
        ],
        panels=[
            Panel(
                title="kernels per GB",
                unit="kernels",
                samples={f"{name}, {count}": [GIGABYTE / size] for (name, count), size in each.items()},
                bars=True,
            )
        ],
        samples={"proportional_bytes": {f"{name}, {count}": found for (name, count), found in measured.items()}},
        notes=[
            "Launchers and the shared zygote are counted in. The gateway's own process is not, on either side.",
            "What members share (the zygote's pages) costs the same for one and for many, so a larger pool fits more in a GB.",
        ],
    )
