"""Finds a Python of a wanted version that works, also behind a pyenv shim whose version is not the active one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

ANSWER_SECONDS = 10.0


def find_python(version: str, *, environment: Mapping[str, str]) -> Path | None:
    """A Python of `version` ("3.10") that can make virtual environments, or None. Blocking: it starts the ones that it tries."""
    tried: set[Path] = set()
    for candidate in _candidates(version, environment):
        if candidate not in tried and os.access(candidate, os.X_OK) and _works(candidate, version):
            return candidate
        tried.add(candidate)
    return None


def _candidates(version: str, environment: Mapping[str, str]) -> Iterator[Path]:
    name = f"python{version}"
    directories = [Path(text) for text in environment.get("PATH", "").split(os.pathsep) if text]
    for directory in directories:
        yield directory / name
    for root in _pyenv_roots([one.parent for one in directories if one.name == "shims"], environment):
        for prefix in sorted((root / "versions").glob(f"{version}*"), reverse=True):
            yield prefix / "bin" / name


def _pyenv_roots(above_shims: list[Path], environment: Mapping[str, str]) -> Iterator[Path]:
    if environment.get("PYENV_ROOT"):
        yield Path(environment["PYENV_ROOT"])
    yield from above_shims
    pyenv = shutil.which("pyenv", path=environment.get("PATH", ""))
    if pyenv is not None and (root := _answer([pyenv, "root"])):
        yield Path(root)


def _works(python: Path, version: str) -> bool:
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return _answer([str(python), "-c", code]) == version


def _answer(command: list[str]) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
