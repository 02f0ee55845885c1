"""What a wheel carries to where Jupyter looks is what the tree holds."""

from __future__ import annotations

import configparser
import json
from pathlib import Path

from eg_knative.gateway.kernelspec_files import load_entry, shipped_directories

ROOT = Path(__file__).resolve().parents[3]


def test_every_kernelspec_is_installed() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = dict(parser["options.data_files"].items())
    for directory in (ROOT / "kernelspecs").iterdir():
        assert listed[f"share/jupyter/kernels/{directory.name}"].strip() == f"kernelspecs/{directory.name}/*"
        assert all(path.is_file() for path in directory.iterdir())  # the patterns are flat
    assert len(listed) == len(list((ROOT / "kernelspecs").iterdir()))


def test_every_kernelspec_is_sound() -> None:
    assert shipped_directories(ROOT / "eg_knative") == (str(ROOT / "kernelspecs"),)
    for directory in (ROOT / "kernelspecs").iterdir():
        entry = load_entry(name=directory.name, resource_dir=str(directory), python="python")
        assert entry.error is None
        assert entry.specification is not None
        assert any(name.startswith("logo-") for name in entry.resources)
        assert json.loads((directory / "kernel.json").read_text())["metadata"]["debugger"] is True


def test_outside_of_a_checkout_nothing_is_shipped_beside_the_package(tmp_path: Path) -> None:
    (tmp_path / "kernelspecs").mkdir()
    assert shipped_directories(tmp_path / "eg_knative") == ()
