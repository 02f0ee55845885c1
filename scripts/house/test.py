"""scripts/test: every check of this project, in order, in environments that it makes itself.

Runs pytest folder by folder and prints one plain closing line with the totals. It exits with 0 only when something ran and
nothing failed. What takes minutes by its nature (`soak`) runs only when named.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from pathlib import Path
from types import FrameType

from house.environments import ROOT, SetupError, environment, prepare
from house.progress import Step, complain

FOLDERS = ("unit", "contract", "integration", "clients", "browser", "cluster")
LINTS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "mypy": ["mypy"],
    "import-linter": ["lint-imports"],
    "pip check": ["pip", "check"],
}
# The long loops: a folder of their own, and those that are marked among the cluster's tests.
SOAK = {"tests/soak": [], "tests/cluster": ["-m", "soak"]}
NEEDS_LAB = {"clients", "browser"}
PYTEST_COLLECTED_NOTHING = 5
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@dataclasses.dataclass
class Totals:
    """Counts of tests; a lint counts as one."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Totals) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def main(argv: list[str]) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    options, pytest_options = _parse(argv)
    began = time.monotonic()
    totals = Totals()
    try:
        python = prepare(directory=".venv", lock="test", own_packages=True)
        parts = [part for target in options.targets for part in _parts(target)]
        if any(_reaches(part, NEEDS_LAB) for part, _ in parts):
            prepare(directory=".venv-lab", lock="lab-test", own_packages=False)
        if any(_reaches(part, {"browser"}) for part, _ in parts):
            _find_chromium()
        for number, (part, more) in enumerate(parts, 1):
            print(f"\n== {part} ({number} of {len(parts)}, {time.monotonic() - began:.0f} s so far)", flush=True)
            counted = _lint(python) if part == "lint" else _pytest(python, part, [*more, *pytest_options])
            print(f"== {part}: {counted}", flush=True)
            totals.add(counted)
        if os.environ.get("CI"):  # Elsewhere somebody may be using these environments at the same time.
            totals.add(_leftovers())
    except SetupError as error:
        complain(f"scripts/test: {error}")
        return 1
    except KeyboardInterrupt:
        complain(f"\nscripts/test: interrupted after {totals}")
        return 130
    print(f"\nTook {time.monotonic() - began:.0f} s.\n{totals}", flush=True)
    return 0 if totals.passed and not totals.failed else 1


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description=f"Run the tests. Without a name: {', '.join(FOLDERS)}.",
        epilog="Everything after -- goes to pytest: scripts/test unit -- -x -k claim",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(FOLDERS)}, soak, lint, or a path of a test")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    options.targets = options.targets or list(FOLDERS)
    for target in options.targets:
        if target not in (*FOLDERS, "soak", "lint") and not Path(target.split("::")[0]).exists():
            parser.error(f"{target} is neither a part ({', '.join((*FOLDERS, 'soak', 'lint'))}) nor a path")
    return options, argv[split + 1 :]


def _parts(target: str) -> list[tuple[str, list[str]]]:
    """What is run for a target, each with options of pytest's."""
    if target == "soak":
        return list(SOAK.items())
    if target == "lint":
        return [(target, [])]
    if target in FOLDERS:
        return [(f"tests/{target}", [])]
    path, _, rest = target.partition("::")
    return [(str(Path(path).resolve()) + (f"::{rest}" if rest else ""), [])]


def _reaches(part: str, folders: set[str]) -> bool:
    if part == "lint":
        return False
    path = (ROOT / part.partition("::")[0]).resolve()
    return any(
        path == home or home in path.parents or path in home.parents for home in (ROOT / "tests" / name for name in folders)
    )


def _pytest(python: Path, part: str, options: list[str]) -> Totals:
    with tempfile.TemporaryDirectory(prefix="eg-knative-test-") as scratch:
        report = Path(scratch) / "report.xml"
        command: list[str | Path] = [python, "-m", "pytest", part, f"--junit-xml={report}", "--color=auto", *options]
        code = _run(command)
        counted = _read(report)
    if code == PYTEST_COLLECTED_NOTHING:
        complain(f"scripts/test: {part} has no test to run.")
        return Totals(failed=1)
    if code and not counted.failed:
        complain(f"scripts/test: pytest ended with exit code {code}.")
        counted.failed += 1
    return counted


def _read(report: Path) -> Totals:
    if not report.exists():
        return Totals()
    counted = Totals()
    for suite in xml.etree.ElementTree.parse(report).iter("testsuite"):
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        counted.add(Totals(passed=int(suite.get("tests", 0)) - failed - skipped, failed=failed, skipped=skipped))
    return counted


def _lint(python: Path) -> Totals:
    counted = Totals()
    for name, (program, *arguments) in LINTS.items():
        print(f"-- {name}", flush=True)
        good = _run([python.parent / program, *arguments]) == 0
        counted.add(Totals(passed=good, failed=not good))
    return counted


def _leftovers() -> Totals:
    """One failure for the processes of our environments that outlive the tests."""
    left = {}
    for _ in range(20):
        left = _processes()
        if not left:
            return Totals(passed=1)
        time.sleep(0.5)
    for pid, command in left.items():
        complain(f"scripts/test: left behind: process {pid}: {command[:200]}")
    return Totals(failed=1)


def _processes() -> dict[int, str]:
    """Running processes whose command line names this directory's environments (Linux only; a zombie has no command line)."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{ROOT}/.venv" in command:
            found[int(entry.parent.name)] = command
    return found


def _run(command: list[str | Path]) -> int:
    """Run in the foreground; a Ctrl-C is the child's first, and ours after it has cleaned up."""
    env = environment() | {"PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise


def _find_chromium() -> None:
    """Install Debian's where we may; the browser tests skip with the remedy where it is still missing."""
    if any(map(shutil.which, CHROMIUM)):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        complain("scripts/test: the browser tests need Chromium and will be skipped. Debian and Ubuntu: apt-get install chromium")
        return
    with Step("Installing Chromium from Debian's packages"):
        env = environment() | {"DEBIAN_FRONTEND": "noninteractive"}
        install = ["apt-get", "install", "-y", "--no-install-recommends", "chromium", "fonts-dejavu-core"]
        for command in (["apt-get", "update"], install):
            done = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            if done.returncode:
                complain(f"scripts/test: {' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
                return


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.stderr.flush()
    raise KeyboardInterrupt
