"""How the tests find a Python of another version. The programs here are shell scripts that answer as a Python or a shim would."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import interpreters
from tests.interpreters import find_python

FAILS = "echo 'pyenv: python3.10: command not found' >&2; exit 127"
ANSWERS = "echo 3.10"


def program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("broken", [FAILS, "echo 3.12", "exec sleep 60"], ids=["inactive shim", "another version", "no answer"])
def test_one_that_does_not_work_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(interpreters, "ANSWER_SECONDS", 0.5)
    first = program(tmp_path / "one" / "python3.10", broken)
    second = program(tmp_path / "two" / "python3.10", ANSWERS)
    assert find_python("3.10", environment={"PATH": f"{first.parent}:{tmp_path / 'nothing'}:{second.parent}"}) == second
    assert find_python("3.10", environment={"PATH": str(first.parent)}) is None


@pytest.mark.parametrize("told_by", ["shims", "PYENV_ROOT", "pyenv root"])
def test_the_root_of_pyenv_is_looked_into(tmp_path: Path, told_by: str) -> None:
    root = tmp_path / "root"
    program(root / "versions" / "3.10.9" / "bin" / "python3.10", ANSWERS)
    program(root / "versions" / "3.1.0" / "bin" / "python3.10", ANSWERS)
    wanted = program(root / "versions" / "3.10-dev" / "bin" / "python3.10", ANSWERS)
    wanted.unlink()  # left over from an installation that failed
    program(root / "shims" / "python3.10", FAILS)
    bin_ = program(tmp_path / "bin" / "pyenv", f"echo {root}").parent
    environment = {
        "shims": {"PATH": str(root / "shims")},
        "PYENV_ROOT": {"PATH": "", "PYENV_ROOT": str(root)},
        "pyenv root": {"PATH": str(bin_)},
    }[told_by]
    assert find_python("3.10", environment=environment) == root / "versions" / "3.10.9" / "bin" / "python3.10"


def test_without_any_there_is_none() -> None:
    assert find_python("3.10", environment={}) is None
