"""What a benchmark says is what it measured: percentiles, goals, and the four forms of a report."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from bench import _report
from bench._report import Goal, Panel, Report, median, percentile


def report(**changes: object) -> Report:
    fields: dict[str, object] = {
        "name": "launch",
        "title": "A title",
        "columns": ("system", "figure"),
        "rows": [("eg-knative", "1.5 / 2.5")],
        "goals": [Goal(name="quick", value=24.9, goal=25, unit="ms")],
        "panels": [
            Panel(title="a", unit="ms", samples={"x": [1.0, 2.0], "y": [3.0]}, logarithmic=True),
            Panel(title="b", unit="n", samples={"x": [1.0], "y": [2.0]}, bars=True),
        ],
        "samples": {"x": [1.0, 2.0]},
        "notes": ["A note."],
        **changes,
    }
    return Report(**fields)  # type: ignore[arg-type]


def test_percentiles_are_samples() -> None:
    samples = [float(number) for number in range(1, 201)]
    assert percentile(samples, 0.99) == 198.0
    assert percentile(samples, 1.0) == 200.0
    assert percentile([7.0], 0.99) == 7.0
    assert median(samples) == 100.5
    assert math.isnan(percentile([], 0.5))


@pytest.mark.parametrize(
    ("value", "at_most", "reached"), [(25.0, True, True), (25.1, True, False), (25.0, False, True), (24.9, False, False)]
)
def test_a_goal_is_reached_at_its_figure(value: float, at_most: bool, reached: bool) -> None:
    assert Goal(name="", value=value, goal=25, at_most=at_most).reached is reached


def test_a_goal_without_a_figure_is_missed() -> None:
    assert not Goal(name="", value=math.nan, goal=25).reached


def test_the_table_names_goal_and_outcome() -> None:
    out = io.StringIO()
    report(goals=[Goal(name="slow", value=30, goal=25, unit="ms")]).show(Console(file=out, width=120))
    assert all(text in out.getvalue() for text in ("eg-knative", "1.5 / 2.5", "≤ 25 ms", "30 ms", "MISSED", "A note."))


def test_json_and_plot_are_written(tmp_path: Path) -> None:
    data, plot = report().write(tmp_path)
    document = json.loads(data.read_text())
    assert document["samples"] == {"x": [1.0, 2.0]}
    assert document["goals"][0]["reached"] is True
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_page_gets_the_table_in_its_section_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- launch: written by the command -->\nold\n<!-- launch: end -->\nafter\n")
    monkeypatch.setattr(_report, "DOCUMENT", page)
    for _ in range(2):
        report().write_docs()
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert text.count("| eg-knative | 1.5 / 2.5 |") == 1
    assert "old" not in text


def test_every_benchmark_has_its_section_in_the_page() -> None:
    from bench.__main__ import BENCHMARKS

    text = _report.DOCUMENT.read_text()
    for name in BENCHMARKS:
        assert f"<!-- {name}: written by the command -->" in text
        assert f"<!-- {name}: end -->" in text
