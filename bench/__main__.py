"""`python -m bench NAME`: run one benchmark, print its table, write JSON and a plot. See docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from bench._progress import Progress
from bench._report import ROOT, Report
from bench._systems import directory

BENCHMARKS = {
    "launch": (200, "POST → WebSocket → result of the first cell"),
    "cells": (200, "a cell through the gateway ÷ by direct ZeroMQ"),
    "loop": (10, "trivial requests/s with 1, 10 and 50 kernels ÷ with none"),
    "restart": (30, "restart in place → result of the next cell on the same WebSocket"),
    "memory": (28, "idle members per GB ÷ plain ipykernels per GB"),
    "lab": (6, "a real JupyterLab page: notebook opened → idle → first result"),
}


def main(argv: list[str]) -> int:
    options = _parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends the servers too
    console = Console()
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    missed = []
    for name in names:
        report = _run(name, samples=options.samples or BENCHMARKS[name][0], console=console)
        report.show(console)
        for path in report.write(options.results):
            console.print(f"[dim]{path}")
        if options.write_docs:
            report.write_docs()
        if not report.reached:
            missed.append(name)
    if missed:
        console.print(f"Goals missed in: {', '.join(missed)}")
    return 1 if missed and options.check else 0


def _run(name: str, *, samples: int, console: Console) -> Report:
    began = time.monotonic()
    with directory() as place:
        report: Report = importlib.import_module(f"bench.{name}").run(place=place, samples=samples, progress=Progress(console))
    console.print(f"{name} took {time.monotonic() - began:.0f} s", style="dim")
    return report


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure this gateway beside stock Enterprise Gateway and plain jupyter_client, in one run.",
        epilog="\n".join(f"{name:8} {what} ({samples})" for name, (samples, what) in BENCHMARKS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--samples", type=int, help="how many of each to take; the usual number stands in brackets below")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="where JSON and plots go (default: results/)")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a goal is missed")
    options = parser.parse_args(argv)
    if options.samples is not None and options.samples < 1:
        parser.error("--samples must be at least 1")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
