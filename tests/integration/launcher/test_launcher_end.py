"""Every process ends: asked, forgotten, killed, or never rightly begun."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from tests.integration.launcher.launching import Member, Members


async def _with_spare(members: Members, python: str, **changes: Any) -> Member:
    member = await members.ready(python, **changes)
    await member.promote()
    async with asyncio.timeout(10):
        while len(psutil.Process(member.process.pid).children()) < 3:
            await asyncio.sleep(0.02)
    member.note_processes()
    return member


async def test_shutdown_ends_all_of_it(members: Members, any_python: str) -> None:
    member = await _with_spare(members, any_python)
    assert len(member.seen) >= 3  # the process between two forks may have been seen too
    started = time.monotonic()
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 5})
    assert await member.ended() == 0
    assert time.monotonic() - started < 3
    await member.nothing_left()
    assert list((member.directory / "connections").glob("*.json")) == []
    assert not (member.directory / "socket").exists()


async def test_shutdown_of_an_unclaimed_member(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    started = time.monotonic()
    await member.ok("POST", "/v1/shutdown", {})
    assert await member.ended() == 0
    assert time.monotonic() - started < 2
    await member.nothing_left()


async def test_a_stubborn_kernel_and_its_children_end(members: Members, ipykernel_6: str) -> None:
    member = await _with_spare(members, ipykernel_6)
    client = await member.client()
    await client.execute(
        "import os, signal, subprocess, sys\n"
        "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "stubborn = 'import signal, time\\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\ntime.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', stubborn])\n"
        "subprocess.Popen([sys.executable, '-c', stubborn], start_new_session=True)"
    )
    await client.send(
        "execute_request", {"code": "while True:\n    try:\n        while True: pass\n    except BaseException: pass"}
    )
    await asyncio.sleep(0.3)
    assert len(member.note_processes()) == 5
    started = time.monotonic()
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 1})
    assert await member.ended() == 0
    assert 0.8 < time.monotonic() - started < 4
    await member.nothing_left()


async def test_a_smaller_grace_shortens_it(members: Members, ipykernel_6: str) -> None:
    member = await _with_spare(members, ipykernel_6)
    client = await member.client()
    await client.execute("import signal; _ = signal.signal(15, signal.SIG_IGN)")
    await client.send("execute_request", {"code": "while True: pass"})
    await asyncio.sleep(0.2)
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 600})
    await asyncio.sleep(0.2)
    status, answer = await member.call("POST", "/v1/promote", {"claim_id": "other", "kernel_id": "k"})
    assert (status, answer["reason"]) == (409, "already_claimed")
    assert (await member.call("POST", "/v1/restart", {}))[1]["reason"] == "stopping"
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 0})
    assert await member.ended(within=3) == 0


async def test_sigterm_is_shutdown_and_sigint_is_nothing(members: Members, ipykernel_6: str) -> None:
    member = await _with_spare(members, ipykernel_6)
    for signum in (signal.SIGINT, signal.SIGHUP):
        os.kill(member.process.pid, signum)
    await asyncio.sleep(0.2)
    assert (await member.beat())["state"] == "claimed"
    os.kill(member.process.pid, signal.SIGTERM)
    assert await member.ended() == 0
    await member.nothing_left()


async def test_a_killed_launcher_leaves_nothing(members: Members, any_python: str) -> None:
    member = await _with_spare(members, any_python)
    assert len(member.seen) >= 3  # the process between two forks may have been seen too
    os.kill(member.process.pid, signal.SIGKILL)
    await member.ended()
    await member.nothing_left()


async def test_a_launcher_killed_while_it_boots_leaves_nothing(members: Members, ipykernel_6: str) -> None:
    for wait in (0.15, 0.3, 0.5, 0.7):
        member = members.start([ipykernel_6, "-m", "ipykernel_launcher", "-f", "{connection_file}"])
        await asyncio.sleep(wait)
        member.note_processes()
        member.process.kill()
        member.process.wait()
        await member.nothing_left()


async def test_a_killed_launcher_takes_a_plain_kernel_with_it(members: Members) -> None:
    member = members.start([sys.executable, "-c", "import time; time.sleep(600)", "{connection_file}"])
    await member.until(lambda beat: beat["state"] == "ready")
    asking = asyncio.create_task(member.call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": "k"}))
    await asyncio.sleep(0.5)
    assert len(member.note_processes()) == 1
    member.process.kill()
    await asyncio.gather(asking, return_exceptions=True)
    await member.ended()
    await member.nothing_left()


async def test_nobody_wants_it(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6, unclaimed_timeout_seconds=1.0)
    listening = asyncio.create_task(member.until(lambda beat: beat["state"] == "stopping", timeout=1.8))
    await asyncio.gather(listening, return_exceptions=True)
    assert isinstance(listening.exception(), TimeoutError), "an open stream of beats keeps it"
    assert await member.ended(within=5) == 0
    await member.nothing_left()


async def test_it_was_abandoned(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6, unclaimed_timeout_seconds=30.0, abandoned_timeout_seconds=0.5)
    await member.promote()
    started = time.monotonic()
    assert await member.ended(within=6) == 0
    assert time.monotonic() - started > 0.4


async def test_a_doomed_member_says_why_and_ends(members: Members) -> None:
    member = members.start(["/no/such/python", "-m", "ipykernel", "-f", "{connection_file}"], unclaimed_timeout_seconds=1.0)
    await member.until(lambda beat: beat["state"] == "failed")
    assert (await member.ok("GET", "/v1/health"))["message"]
    assert await member.ended(within=5) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_sha256": "short"}, "token_sha256"),
        ({"listen": "http://x"}, "listen"),
        ({"listen": "unix:/no/such/directory/socket"}, "listen"),
        ({"protocol": 2}, "protocol"),
        ({"surprise": 1}, "surprise"),
        ({"kernel": {"argv": []}}, "kernel.argv"),
        ({"ip": "192.0.2.1"}, "ports[0]"),
    ],
)
async def test_a_bad_configuration_names_the_field(members: Members, change: dict[str, Any], words: str) -> None:
    member = members.start(["program"], **change)
    assert await member.ended() == 2
    assert words in member.log.read_text()


async def test_a_configuration_that_is_not_json() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "eg_launcher", "--config", "-"], input=b"{", capture_output=True, check=False, timeout=20
    )
    assert process.returncode == 2
    assert b"cannot be read" in process.stderr


async def test_reserved_ports_are_nobody_elses(members: Members, ipykernel_6: str) -> None:
    """Between a kernel's end and its successor's start nobody gets its ports, not even with SO_REUSEADDR."""
    member = await members.ready(ipykernel_6)
    connection = (await member.promote())["connection"]
    ours = {connection[name] for name in connection if name.endswith("_port")}
    client = await member.client()
    await client.send("execute_request", {"code": "exit()", "silent": False})
    await member.until(lambda beat: beat["kernel_state"] == "dead")
    given = set()
    held = []
    for _ in range(3000):
        sock = socket.socket()
        held.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        given.add(sock.getsockname()[1])
    for sock in held:
        sock.close()
    assert not ours & given
    assert (await member.ok("POST", "/v1/restart", {}))["connection"] == connection


async def test_fixed_ports_and_tcp(members: Members, ipykernel_6: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        base = probe.getsockname()[1]
    ports = [base + offset if base < 65000 else base - offset - 1 for offset in range(1, 6)]
    member = await members.ready(ipykernel_6, ports=ports)
    connection = (await member.ok("GET", "/v1/connection"))["connection"]
    names = ["shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"]
    assert [connection[name] for name in names] == ports


async def test_files_are_for_their_owner_alone(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    directory = Path(member.configuration["connection_directory"])
    assert directory.stat().st_mode & 0o777 == 0o700
    (file,) = directory.glob("*.json")
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["kernel_name"] == "tested"
    assert (member.directory / "socket").stat().st_mode & 0o777 == 0o600
