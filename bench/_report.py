"""What one benchmark has to say, in four forms: a table on the terminal, JSON, a plot, a section of docs/benchmarks.md."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PACKAGES = ("jupyter_enterprise_gateway", "jupyter_client", "jupyter_server", "ipykernel", "pyzmq", "tornado")


def median(samples: Sequence[float]) -> float:
    """The middle one; not a number without samples."""
    return statistics.median(samples) if samples else math.nan


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that `share` (0 to 1) of all samples do not exceed; not a number without samples."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def milliseconds(seconds: float) -> str:
    """Three digits that count, for a table."""
    value = seconds * 1000
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """One figure of the issue. `at_most`: reached at or below `goal`; otherwise at or above."""

    name: str
    value: float
    goal: float
    unit: str = ""
    at_most: bool = True

    @property
    def reached(self) -> bool:
        return self.value <= self.goal if self.at_most else self.value >= self.goal

    def row(self) -> tuple[str, str, str, str]:
        sign = "≤" if self.at_most else "≥"
        unit = f" {self.unit}" if self.unit else ""
        digits = ".0f" if abs(self.value) >= 100 else ".3g"
        return self.name, f"{sign} {self.goal:g}{unit}", f"{self.value:{digits}}{unit}", "reached" if self.reached else "MISSED"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot: samples of several systems as cumulative distributions, or one bar for each."""

    title: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    bars: bool = False
    logarithmic: bool = False
    goal: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one benchmark. `rows` match `columns`; `samples` is everything measured, for the JSON."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    goals: Sequence[Goal]
    panels: Sequence[Panel]
    samples: Mapping[str, object]
    notes: Sequence[str] = ()

    @property
    def reached(self) -> bool:
        return all(goal.reached for goal in self.goals)

    def show(self, console: Console) -> None:
        """The tables on the terminal."""
        for title, columns, rows in self._tables():
            table = Table(title=title, title_justify="left")
            for number, column in enumerate(columns):
                table.add_column(column, justify="right" if number else "left")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)

    def write(self, directory: Path) -> tuple[Path, Path]:
        """JSON and plot; their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        document = {
            "name": self.name,
            "title": self.title,
            "machine": machine(),
            "goals": [{**dataclasses.asdict(goal), "reached": goal.reached} for goal in self.goals],
            "columns": list(self.columns),
            "rows": [list(row) for row in self.rows],
            "notes": list(self.notes),
            "samples": self.samples,
        }
        data, plot = directory / f"{self.name}.json", directory / f"{self.name}.png"
        data.write_text(json.dumps(document, indent=1))
        self._draw(plot)
        return data, plot

    def write_docs(self) -> None:
        """Put this report into its section of docs/benchmarks.md."""
        facts = machine()
        lines = [f"Run of {facts['date']}, {facts['cores']} cores, {facts['scheduling']}, {facts['versions']}.", ""]
        for _title, columns, rows in self._tables():
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            lines.append("")
        lines += [note.replace("\n", " ") + "\n" for note in self.notes]
        begin, end = f"<!-- {self.name}: written by the command -->", f"<!-- {self.name}: end -->"
        text = DOCUMENT.read_text()
        section = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not section.search(text):
            raise ValueError(f"{DOCUMENT} has no section {begin}")
        body = "\n".join(lines)
        DOCUMENT.write_text(section.sub(lambda _found: f"{begin}\n\n{body}\n{end}", text))

    def _tables(self) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
        goals = [goal.row() for goal in self.goals]
        return [(self.title, self.columns, self.rows), ("Goals", ("goal", "asked for", "measured", ""), goals)]

    def _draw(self, path: Path) -> None:
        import matplotlib as mpl  # imported late: it takes a second that other commands need not wait for

        mpl.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(self.panels), figsize=(6.5 * len(self.panels), 4.5), squeeze=False, layout="constrained"
        )
        for axis, panel in zip(axes[0], self.panels, strict=True):
            axis.set_title(panel.title)
            axis.set_xlabel(panel.unit)
            axis.grid(axis="x", alpha=0.3)
            if panel.goal is not None:
                axis.axvline(panel.goal, color="black", linestyle=":", label=f"goal: {panel.goal:g}")
            (_draw_bars if panel.bars else _draw_distributions)(axis, panel)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _draw_bars(axis: Any, panel: Panel) -> None:
    labels = list(panel.samples)
    bars = axis.barh(labels, [median(panel.samples[label]) for label in labels], color=[f"C{i}" for i in range(len(labels))])
    axis.bar_label(bars, fmt="%.3g", padding=2)
    axis.invert_yaxis()
    axis.margins(x=0.1)


def _draw_distributions(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for label, samples in panel.samples.items():
        ordered = sorted(samples)
        shares = [(number + 1) / len(ordered) for number in range(len(ordered))]
        axis.step(ordered, shares, where="post", label=label, marker="." if len(ordered) < 40 else None)
    axis.set_ylabel("share of samples")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize="small")
    if panel.logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))


def machine() -> dict[str, str]:
    """What a reader must know of the machine to compare: nothing that names it."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": str(len(os.sched_getaffinity(0))),
        "scheduling": "usual priority" if os.sched_getscheduler(0) == os.SCHED_OTHER else "real-time priority",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]),
    }
