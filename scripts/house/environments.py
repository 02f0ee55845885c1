"""Makes .venv and .venv-lab what the locks in requirements/ say, and does nothing when they are already that.

A stamp inside each environment holds the Python version and the digest of every lock that it satisfies. Two runs at once
wait for each other. It does not mend an environment that somebody changed by hand: remove it, and the next run makes it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from house.progress import Step

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = ((3, 10), (3, 11))
CONTAINS = {"gateway": ("gateway",), "test": ("test", "gateway"), "lab": ("lab",), "lab-test": ("lab-test", "lab")}
"""What each lock satisfies: the larger ones were resolved together with the smaller ones."""
NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Max retries exceeded|Network is unreachable"
    r"|Temporary failure in name resolution|Could not fetch URL",
)


class SetupError(Exception):
    """The environments cannot be made; the message is the one line that the user sees."""


def prepare(*, directory: str, lock: str, own_packages: bool) -> Path:
    """Make ROOT/directory satisfy requirements/`lock`.txt and return its Python.

    `own_packages`: also install this project's two distributions, editable. Raises SetupError.
    """
    place = ROOT / directory
    python = place / "bin" / "python"
    with _one_at_a_time():
        wanted = {name: _digest(name) for name in CONTAINS[lock]} | ({"setup": _digest_of_setup()} if own_packages else {})
        if _satisfied(place, wanted):
            return python
        if not _usable(python):
            with Step(f"Creating {directory} with Python {sys.version.split()[0]}"):
                _create(place)
        _install(
            place,
            ["--require-hashes", "-r", f"requirements/{lock}.txt"],
            title=f"Installing {lock}.txt into {directory}",
            lock=lock,
        )
        if own_packages:
            _install(
                place,
                ["--no-deps", "--no-build-isolation", "-e", ".", "-e", "kernel-launchers"],
                title=f"Installing eg-knative into {directory}",
            )
        stamp = {"python": _version(python), "locks": wanted}
        (place / "eg-knative.json").write_text(json.dumps(stamp))
    return python


def environment() -> dict[str, str]:
    """The user's environment for the programs that we start, less what would make one Python read another's files."""
    unwanted = {"PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    return {key: value for key, value in os.environ.items() if key not in unwanted}


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _digest(lock: str) -> str:
    return hashlib.sha256((ROOT / "requirements" / f"{lock}.txt").read_bytes()).hexdigest()


def _digest_of_setup() -> str:
    """Entry points and packages are fixed at installation, so a change of these files asks for another one."""
    files = ("setup.cfg", "kernel-launchers/setup.cfg")
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in files)).hexdigest()


def _satisfied(place: Path, wanted: dict[str, str]) -> bool:
    try:
        stamp = json.loads((place / "eg-knative.json").read_text())
    except (OSError, ValueError):
        return False
    same_locks = wanted.items() <= stamp.get("locks", {}).items()
    return bool(same_locks and stamp.get("python") == _version(place / "bin" / "python"))


def _version(python: Path) -> str | None:
    """Full version and place of an environment's Python; None when it does not run."""
    code = "import sys, pip; print(sys.version.split()[0], sys.prefix)"
    try:
        answer = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, env=environment(), check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _usable(python: Path) -> bool:
    version = _version(python)
    if version is None:
        return False
    number, _, prefix = version.partition(" ")
    if tuple(map(int, number.split(".")[:2])) not in SUPPORTED:
        raise SetupError(
            f"{python.parent.parent} is of Python {number}; 3.10 or 3.11 is needed. Remove that directory and try again."
        )
    return Path(prefix) == python.parent.parent  # A directory that was moved or copied holds scripts that point elsewhere.


def _create(place: Path) -> None:
    if place.exists():
        shutil.rmtree(place)
    made = subprocess.run([sys.executable, "-m", "venv", place], capture_output=True, text=True, env=environment(), check=False)
    if made.returncode:
        shutil.rmtree(place, ignore_errors=True)
        last = (made.stdout + made.stderr).strip().splitlines() or ["no output"]
        raise SetupError(f"{sys.executable} -m venv failed: {last[-1]}")


def _install(place: Path, arguments: list[str], *, title: str, lock: str | None = None) -> None:
    log = place / "install.log"
    total = len(re.findall(r"^[a-zA-Z]", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.MULTILINE)) if lock else 0
    command: list[str | Path] = [
        place / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "2",
        *arguments,
    ]
    environ = environment() | {"PIP_USER": "0", "PYTHONUNBUFFERED": "1", "PIP_PROGRESS_BAR": "off"}
    with Step(title) as step, log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        seen = 0
        try:
            for line in process.stdout:
                out.write(line)
                if re.match(r"\s*(Collecting|Requirement already satisfied)", line):
                    seen += 1
                    step.detail = f"package {min(seen, total)} of {total}," if total else ""
                elif line.startswith("Installing collected packages"):
                    step.detail = "unpacking,"
        except BaseException:  # Asked to stop: so is pip.
            process.terminate()
            raise
        finally:
            code = process.wait()
        if code == 0:
            return
        out.flush()
        text = log.read_text()
        if NO_NETWORK.search(text):
            raise SetupError(
                f"No network: pip reached no package index. Connect, or name a mirror in PIP_INDEX_URL, and try again ({log})."
            )
        errors = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()[-1:]
        raise SetupError(f"pip failed: {errors[-1] if errors else 'no output'} ({log})")
