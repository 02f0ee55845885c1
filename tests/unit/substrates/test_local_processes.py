from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_knative.substrates.local_processes import (
    ProcessIdentity,
    ProcessWatch,
    end_sessions,
    identify,
    listener_of,
    reap,
    spawn,
)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = identify(process.pid)
    assert identity is not None
    return identity


def another(identity: ProcessIdentity) -> ProcessIdentity:
    """Whoever had this process id before."""
    return dataclasses.replace(identity, started_ticks=identity.started_ticks - 1)


def test_a_process_is_itself_and_nobody_is_nobody(sleeper: subprocess.Popen[bytes]) -> None:
    assert identity_of(sleeper) == identity_of(sleeper)
    assert identify(2**22 + 1) is None
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert identify(sleeper.pid) is None, "a zombie is nobody"


async def test_an_end_is_seen_at_once(sleeper: subprocess.Popen[bytes]) -> None:
    watch = ProcessWatch.open(identity_of(sleeper))
    assert watch is not None
    assert not await watch.wait(timeout=0.02)
    started = time.monotonic()
    watch.send(signal.SIGTERM)
    assert await watch.wait(timeout=10)
    assert time.monotonic() - started < 1
    watch.send(signal.SIGKILL)
    watch.close()
    assert sleeper.wait() == -signal.SIGTERM


async def test_a_process_of_another_time_is_not_watched(sleeper: subprocess.Popen[bytes]) -> None:
    identity = identity_of(sleeper)
    before = len(os.listdir("/proc/self/fd"))
    assert ProcessWatch.open(another(identity)) is None
    assert ProcessWatch.open(dataclasses.replace(identity, machine_boot="another")) is None
    assert ProcessWatch.open(dataclasses.replace(identity, pid=2**22 + 1)) is None
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_spawned_child_leads_a_session_and_its_code_is_known(tmp_path: Path) -> None:
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    code = "import os, time; print(os.getsid(0) == os.getpid(), os.getcwd(), dict(os.environ)); time.sleep(0.2); os._exit(7)"
    pid = spawn([sys.executable, "-uSc", code], env={"A": "b"}, directory=tmp_path, output=log)
    os.close(log)
    identity = identify(pid)
    assert identity is not None
    assert reap(pid) is None, "it runs"
    watch = ProcessWatch.open(identity)
    assert watch is not None
    assert await watch.wait(timeout=30)
    assert watch.exit_code == 7
    assert reap(pid) is None, "it is reaped already"
    assert (tmp_path / "log").read_text().startswith(f"True {tmp_path} {{'A': 'b'")


async def test_a_program_that_cannot_be_started_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        spawn(["/no/such/program"], env={}, directory=tmp_path, output=1)


def session_of_two() -> tuple[subprocess.Popen[bytes], int]:
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"], start_new_session=True, stdout=subprocess.PIPE
    )
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    leader.stdout.close()
    return leader, child


async def ended(pid: int) -> bool:
    for _ in range(200):
        if identify(pid) is None:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_the_orphans_of_a_session_are_ended() -> None:
    leader, child = session_of_two()
    identity = identity_of(leader)
    leader.kill()
    leader.wait()
    assert identify(child) is not None
    assert end_sessions([identity]) == 0
    assert await ended(child)
    assert end_sessions([identity]) == 0


async def test_the_session_of_a_successor_is_left_alone() -> None:
    leader, child = session_of_two()
    identity = identity_of(leader)
    try:
        assert end_sessions([another(identity)]) == 0
        assert end_sessions([dataclasses.replace(identity, machine_boot="another")]) == 0
        assert end_sessions([]) == 0
        assert identify(leader.pid) == identity
        assert identify(child) is not None
    finally:
        assert end_sessions([identity]) == 0
        leader.wait()
    assert await ended(child)


def test_the_listener_of_a_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    assert listener_of(path) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        assert listener_of(path) is None
        listener.listen()
        assert listener_of(path) == os.getpid()
    assert listener_of(path) is None
