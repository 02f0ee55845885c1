"""The documents name what exists: options and their defaults, kernelspec keys, files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from eg_knative.processproxies import configuration
from eg_knative.settings import LocalSettings, PoolSettings, Settings
from eg_knative.specification import PoolConfiguration
from tests.servers import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_option_is_documented_with_its_environment_variable() -> None:
    source = Path(configuration.__file__).read_text() + (ROOT / "eg_knative" / "gateway" / "app.py").read_text()
    page = (ROOT / "docs" / "configuration.md").read_text()
    used = set(re.findall(r"EG_KNATIVE_[A-Z_]+", source))
    assert used
    assert set(re.findall(r"EG_KNATIVE_[A-Z_]+", page)) == used


def test_documented_defaults_are_the_settings() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    stated = dict(re.findall(r"^\| `(\w+)` \| `EG_[A-Z_]+` \| ([\d.]+) \|", page, re.MULTILINE))
    local = LocalSettings(run_directory=Path("unused"))
    pool = PoolSettings()
    actual = {
        "pool_size": pool.size,
        "pool_total": pool.total,
        "pool_concurrent_starts": pool.concurrent_starts,
        "pool_refill_per_second": pool.refill_per_second,
        "boot_timeout": pool.boot_timeout_seconds,
        "launch_timeout": Settings(local=local).launch_timeout_seconds,
        "beat_interval": Settings(local=local).beat_interval_seconds,
        "maximum_processes": local.maximum_processes,
        "minimum_free_memory": local.minimum_free_memory_bytes / 1024**2,
        "unclaimed_timeout": local.unclaimed_timeout_seconds,
        "abandoned_timeout": local.abandoned_timeout_seconds,
    }
    assert {name: float(value) for name, value in stated.items() if name != "port_retries"} == actual


def test_every_key_of_a_pool_is_documented() -> None:
    page = (ROOT / "docs" / "kernelspecs.md").read_text()
    documented = set(re.findall(r"^\| `pool\.(\w+)`", page, re.MULTILINE))
    assert documented == {field.name for field in dataclasses.fields(PoolConfiguration)}
