"""scripts/find-python among Pythons that do not work: shell scripts that answer as pyenv's shims and half Pythons do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ROOT

SHIM = "echo 'pyenv: python3.11: command not found' >&2; exit 127"
OLD = 'case "$2" in *version_info*) exit 1;; esac'
WITHOUT_VENV = 'case "$2" in *ensurepip*) exit 1;; esac'
WORKS = f'exec "{sys.executable}" "$@"'
NONE = "No Python 3.10 or 3.11 found (Enterprise Gateway 3.3 runs on no other). Install one, or name it: PYTHON="


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def find(*directories: Path, **env: str) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, str(ROOT / "scripts" / "find-python"), "scripts/run"],
        env={"PATH": ":".join(map(str, directories)), **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("broken", [SHIM, OLD, WITHOUT_VENV], ids=["inactive shim", "too old", "without venv"])
@pytest.mark.parametrize("name", ["python3.11", "python3.10", "python3", "python"])
def test_what_fails_is_passed_over(tmp_path: Path, broken: str, name: str) -> None:
    for shim in ("python3.11", "python3.10", "python3"):
        program(tmp_path / "a" / shim, broken)
    program(tmp_path / "b" / name, WORKS)
    done = find(tmp_path / "a", tmp_path / "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sys.executable}\n", "")


@pytest.mark.parametrize("told_by", ["shims", "PYENV_ROOT"])
def test_versions_of_pyenv_that_are_not_active_are_tried(tmp_path: Path, told_by: str) -> None:
    program(tmp_path / "shims" / "python3.11", SHIM)
    program(tmp_path / "versions" / "3.11.1" / "bin" / "python", OLD)
    program(tmp_path / "versions" / "3.10.2" / "bin" / "python", WORKS)
    done = find(tmp_path / "shims") if told_by == "shims" else find(tmp_path / "nothing", PYENV_ROOT=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{sys.executable}\n", "")


def test_where_none_works_there_is_one_clear_line(tmp_path: Path) -> None:
    program(tmp_path / "shims" / "python3.11", SHIM)
    program(tmp_path / "shims" / "python3", OLD)
    done = find(tmp_path / "shims")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{NONE}/path/to/python3.11 scripts/run\n"


def test_a_python_without_venv_is_named_with_the_remedy(tmp_path: Path) -> None:
    half = program(tmp_path / "python3.11", WITHOUT_VENV)
    program(tmp_path / "python3", OLD)
    done = find(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{half} cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv\n"


@pytest.mark.parametrize("kind", ["missing", "inactive shim"])
def test_one_that_is_named_and_does_not_work_is_not_passed_over(tmp_path: Path, kind: str) -> None:
    program(tmp_path / "python3", WORKS)
    named = tmp_path / "named"
    if kind == "inactive shim":
        program(named, SHIM)
    done = find(tmp_path, PYTHON=str(named))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"PYTHON={named} is not a working Python 3.10 or 3.11 (Enterprise Gateway 3.3 runs on no other).\n"
