"""The nursery: one zygote for all members of a kernelspec. Its members are launchers like any other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from eg_launcher.errors import ZygoteError
from eg_launcher.zygote_client import ChildExit, Zygote
from tests.integration.launcher.launching import Client, Members, ipykernel

if TYPE_CHECKING:
    from pathlib import Path


class Nursery:
    """A nursery and the launchers it forked; nothing of it is left at the end."""

    def __init__(self, zygote: Zygote, members: Members, exits: list[ChildExit], deaths: list[str], python: str) -> None:
        self.zygote, self.members, self.exits, self.deaths, self.python = zygote, members, exits, deaths, python
        self.pids: list[int] = []
        self.numbers = itertools.count()
        self.log = members.directory / "log"

    async def fork(self, **changes: Any) -> tuple[int, Any, dict[str, Any]]:
        """A ready member: its process id, a function that calls it, its configuration."""
        number = next(self.numbers)
        directory = self.members.directory / f"forked-{number}"
        directory.mkdir()
        configuration = self.members.configuration(ipykernel(self.python), **changes)
        configuration["listen"] = f"unix:{directory}/socket"
        configuration["connection_directory"] = str(directory / "connections")
        configuration["name"] = f"forked-{number}"
        with self.log.open("ab") as log:
            pid = await self.zygote.fork_launcher(config=configuration, log_fd=log.fileno())
        self.pids.append(pid)

        async def call(method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
            async with (
                self.members.session(directory / "socket") as session,
                session.request(method, f"http://launcher{path}", json=body) as response,
            ):
                if path.startswith("/v1/beats"):
                    return 200, json.loads(await response.content.readline())
                return response.status, await response.json()

        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, health = await call("GET", "/v1/health")
                    if health["state"] != "starting":
                        assert health["state"] == "ready", health
                        return pid, call, configuration
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        trees = []
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                trees += [process, *process.children(recursive=True)]
                process.terminate()
        _, alive = await asyncio.to_thread(psutil.wait_procs, trees, 5)
        await self.zygote.close()
        assert not alive
        assert not psutil.pid_exists(self.zygote.pid)


@pytest.fixture
async def nursery(members: Members, any_python: str) -> AsyncIterator[Nursery]:
    exits: list[ChildExit] = []
    deaths: list[str] = []
    zygote = await Zygote.start(
        python=[any_python, "-Xfrozen_modules=off"],
        env={"PATH": os.environ["PATH"], "HOME": str(members.directory)},
        cwd="/",
        pre_import=["numpy", "no_such_module"],
        log_fd=2,
        role="nursery",
        on_exit=exits.append,
        on_death=deaths.append,
    )
    nursery = Nursery(zygote, members, exits, deaths, any_python)
    yield nursery
    await nursery.close()


def _start(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "python": [sys.executable],
        "env": {"PATH": os.environ["PATH"]},
        "cwd": "/",
        "log_fd": 2,
        "role": "nursery",
        **changes,
    }
    return Zygote.start(**arguments)


async def test_members_of_a_nursery_are_launchers_like_any_other(nursery: Nursery) -> None:
    assert len(nursery.zygote.notices) == 1
    first, second = await asyncio.gather(nursery.fork(), nursery.fork())
    for index, (_, call, _) in enumerate((first, second)):
        status, answer = await call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": f"k{index}", "env": {"N": str(index)}})
        assert (status, answer["started"]) == (200, "running"), answer
        _, beat = await call("GET", "/v1/beats")
        assert (beat["kernel_started_by"], beat["notice"]) == ("fork", None)
    seen = []
    for index, (pid, call, _) in enumerate((first, second)):
        assert "eg_launcher" not in " ".join(psutil.Process(nursery.zygote.pid).cmdline())
        assert os.getsid(pid) == pid
        for started_by in ("fork", "spare"):
            _, answer = await call("GET", "/v1/connection")
            client = await Client(answer["connection"]).connected()
            look = (
                "[random.random(), float(numpy.random.rand()), os.environ['N'], os.getcwd(), len(os.listdir('/proc/self/task'))]"
            )
            values = await client.json(look, "import random, numpy, os")
            client.close()
            assert values[2] == str(index)
            seen += values[:2]
            assert (await call("GET", "/v1/beats"))[1]["kernel_started_by"] == started_by
            if started_by == "fork":
                assert (await call("POST", "/v1/restart", {}))[0] == 200
    assert len(set(seen)) == 8


async def test_exits_are_told(nursery: Nursery) -> None:
    first, call, _ = await nursery.fork()
    second, _, _ = await nursery.fork()
    await call("POST", "/v1/shutdown", {})
    os.kill(second, signal.SIGKILL)
    async with asyncio.timeout(10):
        while len(nursery.exits) < 2:
            await asyncio.sleep(0.01)
    assert ChildExit(pid=first, code=0, signal=None) in nursery.exits
    assert ChildExit(pid=second, code=None, signal=9) in nursery.exits


async def test_launchers_outlive_their_nursery(nursery: Nursery) -> None:
    pid, call, _ = await nursery.fork()
    await nursery.zygote.close()
    assert not nursery.zygote.alive
    assert (await call("GET", "/v1/health"))[1]["state"] == "ready"
    assert (await call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": "k"}))[0] == 200
    assert (await call("POST", "/v1/restart", {}))[1]["kernel_generation"] == 2
    assert psutil.pid_exists(pid)
    with pytest.raises(ZygoteError, match="gone"):
        await nursery.zygote.fork_launcher(config={}, log_fd=2)


async def test_a_killed_launcher_of_a_nursery_leaves_nothing(nursery: Nursery) -> None:
    pid, call, _ = await nursery.fork()
    await call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": "k"})
    async with asyncio.timeout(20):
        while len(below := psutil.Process(pid).children(recursive=True)) < 3:
            await asyncio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, 3)
    assert not alive


async def test_a_bad_configuration_ends_the_child_with_2(members: Members, ipykernel_6: str) -> None:
    exits: list[ChildExit] = []
    zygote = await _start(on_exit=exits.append)
    with (members.directory / "log").open("wb") as log:
        pid = await zygote.fork_launcher(config={"name": "x"}, log_fd=log.fileno())
    async with asyncio.timeout(5):
        while not exits:
            await asyncio.sleep(0.01)
    await zygote.close()
    assert exits == [ChildExit(pid=pid, code=2, signal=None)]
    assert "kernel: is missing" in (members.directory / "log").read_text()


async def test_its_death_is_told_once(ipykernel_6: str) -> None:
    deaths: list[str] = []
    zygote = await _start(on_death=deaths.append)
    os.kill(zygote.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while not deaths:
            await asyncio.sleep(0.01)
    assert "signal 9" in deaths[0]
    with pytest.raises(ZygoteError):
        await zygote.fork_launcher(config={}, log_fd=2)
    await zygote.close()
    await zygote.close()
    assert len(deaths) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": ["/no/such/python"]}, "/no/such/python"),
        ({"cwd": "/no/such/directory"}, "could not be started"),
        ({"python": ["/bin/true"]}, "gone|spoken"),
        ({"env": {"PATH": "/bin", "PYTHONPATH": "{here}"}, "pre_import": ["sleeps"], "timeout_seconds": 1.0}, "within 1 s"),
        ({"env": {"PATH": "/bin", "PYTHONPATH": "{here}"}, "pre_import": ["exits"]}, "code 7"),
        ({"env": {"PATH": "/bin", "PYTHONPATH": "{here}"}, "pre_import": ["threads"]}, "threads started a thread"),
    ],
)
async def test_what_goes_wrong_is_a_zygote_error(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    (tmp_path / "exits.py").write_text("import os; os._exit(7)")
    (tmp_path / "threads.py").write_text(
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"
    )
    if "env" in changes:
        changes = {**changes, "env": {**changes["env"], "PYTHONPATH": str(tmp_path)}}
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ZygoteError, match=words):
        await _start(**changes)
    assert set(psutil.Process().children(recursive=True)) == before


async def test_a_python_without_ipykernel_is_a_zygote_error(members: Members) -> None:
    directory = members.directory / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    with pytest.raises(ZygoteError, match="ipykernel"):
        await _start(python=[str(directory / "bin" / "python")])
