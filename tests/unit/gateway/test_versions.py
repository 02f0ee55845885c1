"""A gateway beside wrong packages says so before it imports them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eg_knative.cli.versions import complaint, parse

FITTING = {"jupyter_enterprise_gateway": "3.3.0", "jupyter_client": "6.1.12", "jupyter_server": "1.24.0", "pyzmq": "24.0.1"}


def ask(**changes: str | None) -> str | None:
    return complaint(installed=lambda name: {**FITTING, **changes}[name], python=(3, 11))


def test_what_fits() -> None:
    assert ask() is None
    assert complaint() is None  # what the tests run in


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("jupyter_client", "8.6.0"),
        ("jupyter_client", "7.0.0"),
        ("jupyter_client", "6.2.0"),
        ("jupyter_client", "6.1.5"),
        ("jupyter_server", "2.21.1"),
        ("jupyter_server", "1.16.0"),
        ("pyzmq", "27.3.0"),
        ("jupyter_enterprise_gateway", "4.0.0b1"),
    ],
)
def test_what_does_not_is_named_with_the_remedy(name: str, version: str) -> None:
    said = ask(**{name: version})
    assert said is not None
    assert f"{name} {version} is installed" in said
    assert "pip install 'jupyter_enterprise_gateway==3.3.0' 'jupyter_client==6.1.12'" in said


def test_absent_packages_and_other_pythons() -> None:
    assert "pyzmq is not installed" in str(ask(pyzmq=None))
    assert "3.12" in str(complaint(installed=FITTING.__getitem__, python=(3, 12)))
    assert "3.9" in str(complaint(installed=FITTING.__getitem__, python=(3, 9)))


def test_versions_are_numbers_and_whatever_follows() -> None:
    assert parse("6.1.12") == (6, 1, 12)
    assert parse("4.0.0b1") == (4, 0, 0)
    assert parse("24.0.1.post3") == (24, 0, 1)
    assert parse("abc") == ()


def test_the_command_says_it_and_ends(tmp_path: Path) -> None:
    """A newer jupyter_client first on the path, which could not even be imported."""
    newer = tmp_path / "jupyter_client-8.6.0.dist-info"
    newer.mkdir()
    (newer / "METADATA").write_text("Metadata-Version: 2.1\nName: jupyter_client\nVersion: 8.6.0\n")
    (tmp_path / "jupyter_client.py").write_text("raise RuntimeError('imported')\n")
    program = str(Path(sys.executable).parent / "jupyter-egknative")
    ended = subprocess.run([program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "jupyter_client 8.6.0 is installed" in ended.stderr
    assert "Traceback" not in ended.stderr
