"""The kernelspec index: what it sees, what it tells, what it leaves alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from eg_knative.errors import ConfigurationError, UnknownKernelspecError
from eg_knative.gateway.kernelspec_files import load_entry
from eg_knative.gateway.kernelspec_index import KernelspecIndex, Snapshot
from eg_knative.gateway.kernelspecs import rest_model

PROXY = {"process_proxy": {"class_name": "eg_knative.processproxies.pooled.PooledProcessProxy"}}


def write(directory: Path, *, metadata: Any = None, **changes: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    document = {"argv": ["python", "{connection_file}"], "display_name": "x", "language": "python", "metadata": metadata or {}}
    (directory / "kernel.json").write_text(json.dumps({**document, **changes}))
    return directory


def index_of(root: Path) -> KernelspecIndex:
    def find() -> Mapping[str, str]:
        return {path.name: str(path) for path in root.iterdir() if path.is_dir()}

    return KernelspecIndex(find=find, python="/python")


async def test_ours_and_others(tmp_path: Path) -> None:
    write(tmp_path / "ours", metadata=PROXY)
    write(tmp_path / "theirs")
    index = index_of(tmp_path)
    await index.refresh()
    assert index.usable.keys() == {"ours", "theirs"}
    assert index.specifications.keys() == {"ours"}
    assert index.specifications["ours"].argv[0] == "/python"


async def test_listeners_hear_of_changes_alone(tmp_path: Path) -> None:
    write(tmp_path / "a", metadata=PROXY)
    index = index_of(tmp_path)
    heard: list[Snapshot] = []
    index.changed.append(heard.append)
    await index.refresh()
    await index.refresh()
    assert len(heard) == 1
    before = index.snapshot["a"]
    write(tmp_path / "b", metadata=PROXY)
    await index.refresh()
    assert len(heard) == 2
    assert index.snapshot["a"] is before  # what did not change was not read again
    write(tmp_path / "a", metadata=PROXY, env={"A": "1"})
    await index.refresh()
    assert index.specifications["a"].env == {"A": "1"}


async def test_a_kernelspec_behind_swapped_symlinks(tmp_path: Path) -> None:
    """As a kubelet updates a ConfigMap's volume."""
    volume, root = tmp_path / "volume", tmp_path / "root"
    write(volume / "v1", metadata=PROXY, display_name="one")
    write(volume / "v2", metadata=PROXY, display_name="two")
    (root / "spec").mkdir(parents=True)
    (volume / "..data").symlink_to("v1")
    (root / "spec" / "kernel.json").symlink_to(volume / "..data" / "kernel.json")
    index = index_of(root)
    await index.refresh()
    assert index.specifications["spec"].display_name == "one"
    (volume / "..new").symlink_to("v2")
    os.replace(volume / "..new", volume / "..data")
    await index.refresh()
    assert index.specifications["spec"].display_name == "two"


async def test_unknown_and_broken_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "kernel.json").write_text("{")
    write(tmp_path / "sound")
    index = index_of(tmp_path)
    for _ in range(3):
        await index.refresh()
    assert index.usable.keys() == {"sound"}
    assert sum("broken" in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(ConfigurationError, match="line 1"):
        await index.lookup("broken")
    with pytest.raises(UnknownKernelspecError, match="sound"):
        await index.lookup("nothing")
    write(tmp_path / "broken")
    assert (await index.lookup("broken")).error is None  # mended, and found at once
    assert (await index.lookup("SOUND")).name == "sound"


async def test_a_directory_that_goes_away(tmp_path: Path) -> None:
    write(tmp_path / "a")
    index = index_of(tmp_path)
    await index.refresh()
    (tmp_path / "a" / "kernel.json").unlink()
    await index.refresh()
    assert "a" not in index.usable


def test_the_rest_model(tmp_path: Path) -> None:
    write(tmp_path / "a")
    for name in ("logo-svg.svg", "logo-64x64.png", "kernel.js", "other.txt"):
        (tmp_path / "a" / name).write_text("x")
    entry = load_entry(name="a", resource_dir=str(tmp_path / "a"), python="/python")
    assert rest_model(entry, base_url="/base/")["resources"] == {
        "kernel.js": "/base/kernelspecs/a/kernel.js",
        "logo-64x64": "/base/kernelspecs/a/logo-64x64.png",
        "logo-svg": "/base/kernelspecs/a/logo-svg.svg",
    }
