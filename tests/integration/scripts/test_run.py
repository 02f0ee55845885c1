"""scripts/run as its user meets it: one clear line when it cannot, everything running when it can, nothing left when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.servers import KERNELSPEC, NO_PROXY, ROOT, clean_environment

READY_SECONDS = 60.0
STOP_SECONDS = 40.0


def _run(*options: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts" / "run"), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    if not (ROOT / ".venv" / "eg-knative.json").exists():
        pytest.skip("scripts/run would change .venv, which scripts/test did not make. Run: scripts/test integration")
    with tempfile.TemporaryDirectory(prefix="eg-") as home:  # Short: Unix sockets are in the runtime directory below it.
        yield clean_environment(Path(home)) | {"PYTHON": sys.executable}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_is_one_clear_line(env: dict[str, str], taken_port: int) -> None:
    done = _run("--no-lab", f"--port={taken_port}", env=env)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"scripts/run: port {taken_port} is taken. Choose another with --port, or 0 for any.\n"


def test_a_python_that_does_not_fit_is_one_clear_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _run(env=clean_environment(tmp_path / "home") | {"PYTHON": str(old)})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is not a working Python 3.10 or 3.11" in done.stderr


def test_an_option_that_makes_no_sense_is_refused(env: dict[str, str]) -> None:
    done = _run("--pool-size=-1", env=env)
    assert done.returncode == 2
    assert "--pool-size must not be below 0" in done.stderr


@contextlib.contextmanager
def _running(*options: str, env: dict[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """scripts/run, once it says that it is ready, and what it printed."""
    with log.open("wb") as out:
        process = subprocess.Popen([str(ROOT / "scripts" / "run"), *options], env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while "Gateway  " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process, log.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_SECONDS)


def _started_by(process: subprocess.Popen[bytes], home: str) -> list[psutil.Process]:
    """Its descendants, and what speaks of this test's home directory on its command line (launchers leave the family)."""
    found = {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if home in " ".join(other.cmdline()):
                found[other.pid] = other
    return list(found.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["ctrl-c", "sigterm", "sighup"])
def test_it_ends_with_everything_that_it_started(number: signal.Signals, env: dict[str, str], tmp_path: Path) -> None:
    with _running("--no-lab", "--port=0", "--pool-size=1", env=env, log=tmp_path / "out") as (process, printed):
        found = re.search(r"Gateway  (http://\S+)/\?token=(\w+)", printed)
        assert found is not None
        body = json.dumps({"name": KERNELSPEC}).encode()
        request = urllib.request.Request(f"{found[1]}/api/kernels", data=body, headers={"Authorization": f"token {found[2]}"})
        with NO_PROXY.open(request, timeout=30) as answer:
            assert answer.status == 201
        family = _started_by(process, env["HOME"])
        assert len(family) >= 3  # The gateway, a launcher, its kernel.
        process.send_signal(number)
        assert process.wait(STOP_SECONDS) == 128 + number
    _, alive = psutil.wait_procs([one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], timeout=10)
    assert [one for one in alive if one.status() != psutil.STATUS_ZOMBIE] == []
    assert not list(Path(env["HOME"]).glob(".local/share/jupyter/runtime/egknative-*/members/*"))


def test_the_token_is_on_no_command_line(env: dict[str, str], tmp_path: Path) -> None:
    with _running("--no-lab", "--port=0", env=env | {"EG_AUTH_TOKEN": "a-token-of-mine"}, log=tmp_path / "out") as (
        process,
        printed,
    ):
        assert "token=a-token-of-mine" in printed
        lines = [" ".join(one.cmdline()) for one in [psutil.Process(process.pid), *_started_by(process, env["HOME"])]]
        assert [line for line in lines if "a-token-of-mine" in line] == []
        assert os.stat(next((ROOT / ".run").glob("gateway-*.log"))).st_mode & 0o077 == 0
