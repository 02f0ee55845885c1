"""Real launchers, real kernels, real ZeroMQ. Environments of other kernels are made once and kept in the user's cache."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import zmq
import zmq.asyncio

from eg_launcher.messages import request

TOKEN = "a token of the tests"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eg-knative" / "tests"


# Environments


@contextlib.contextmanager
def _making(name: str) -> Iterator[Path]:
    """A directory of the cache, held by one process at a time; `.done` in it says that it is whole."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        directory = CACHE / name
        if directory.exists() and not (directory / ".done").exists():
            shutil.rmtree(directory)
        yield directory


def environment_python(name: str, interpreter: str, *requirements: str) -> str:
    """The Python of a virtual environment with these packages, made if it is not there yet."""
    with _making(f"{name}-{hashlib.sha256(' '.join(requirements).encode()).hexdigest()[:8]}") as directory:
        python = directory / "bin" / "python"
        if not (directory / ".done").exists():
            subprocess.run([interpreter, "-m", "venv", str(directory)], check=True, capture_output=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
            if shutil.which("uv"):
                install = ["uv", "pip", "install", "--quiet", "--python", str(python), *requirements]
            subprocess.run(install, check=True, capture_output=True, timeout=300)
            (directory / ".done").touch()
        return str(python)


def npm_package(name: str) -> Path:
    """The directory of an installed npm package's `node_modules`."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed, so no kernel of another language can be had")
    with _making(f"npm-{name}") as directory:
        if not (directory / ".done").exists():
            directory.mkdir()
            subprocess.run(
                [npm, "install", "--prefix", str(directory), "--no-fund", "--no-audit", name],
                check=True,
                capture_output=True,
                timeout=300,
            )
            (directory / ".done").touch()
        return directory / "node_modules"


# A kernel's client


class Client:
    """Just enough of a Jupyter client, with any key."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self.key = connection["key"]
        self._context = zmq.asyncio.Context()
        self.shell = self._socket(zmq.DEALER, connection["shell_port"])
        self.iopub = self._socket(zmq.SUB, connection["iopub_port"])
        self.iopub.subscribe(b"")

    def _socket(self, kind: int, port: int) -> zmq.asyncio.Socket:
        sock = self._context.socket(kind)
        sock.linger = 0
        sock.connect(f"tcp://127.0.0.1:{port}")
        return sock

    async def send(self, kind: str, content: dict[str, Any], *, key: str | None = None) -> str:
        frames = request(kind=kind, content=content, key=self.key if key is None else key)
        await self.shell.send_multipart(frames)
        message_id: str = json.loads(frames[2])["msg_id"]
        return message_id

    async def connected(self) -> Client:
        """Wait until iopub's subscription has arrived."""
        for _ in range(100):
            await self.send("kernel_info_request", {})
            await self.shell.recv_multipart()
            if await self.iopub.poll(50):
                while await self.iopub.poll(50):
                    await self.iopub.recv_multipart()
                return self
        raise AssertionError("Nothing ever came over iopub")

    async def execute(self, code: str, *, timeout: float = 30, late: float = 0, **content: Any) -> str:
        """Run a cell; its output and results as text. An error is an AssertionError with its traceback.

        `late`: how long to wait for output that comes after idle, from kernels that do not keep the order.
        """
        message = await self.send(
            "execute_request",
            {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, **content},
        )
        text, idle = "", False
        async with asyncio.timeout(timeout):
            while True:
                frames = await self.iopub.recv_multipart()
                start = frames.index(b"<IDS|MSG>")
                header, parent, body = (json.loads(frames[start + index]) for index in (2, 3, 5))
                if parent.get("msg_id") != message:
                    continue
                if header["msg_type"] == "stream":
                    text += body["text"]
                elif header["msg_type"] == "execute_result":
                    text += body["data"]["text/plain"]
                elif header["msg_type"] == "error":
                    raise AssertionError("\n".join([body["ename"], body["evalue"], *body["traceback"]]))
                elif header["msg_type"] == "status" and body["execution_state"] == "idle":
                    idle = True
                if idle and (text or not late or not await self.iopub.poll(int(late * 1000))):
                    return text

    async def json(self, expression: str, setup: str = "") -> Any:
        """The value of an expression."""
        return json.loads(await self.execute(f"{setup}\nimport json as _j; print(_j.dumps({expression}))"))

    def close(self) -> None:
        self._context.destroy(linger=0)


# A launcher


class Member:
    """One launcher process and its HTTP."""

    def __init__(self, directory: Path, configuration: dict[str, Any], *, session: aiohttp.ClientSession) -> None:
        self.directory = directory
        self.configuration = configuration
        self.session = session
        self.log = directory / "log"
        self.seen: set[int] = set()
        self.clients: list[Client] = []
        path = directory / "configuration.json"
        path.write_text(json.dumps(configuration))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "eg_launcher", "--config", str(path)], stdout=log, stderr=log, start_new_session=True
            )

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        async with self.session.request(method, f"http://launcher{path}", json=body, **options) as response:
            return response.status, await response.json()

    async def ok(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        status, answer = await self.call(method, path, body)
        assert status < 300, (status, answer, self.log.read_text()[-3000:])
        return answer

    async def until(self, condition: Any, *, timeout: float = 30) -> dict[str, Any]:
        """The first beat for which the condition holds."""
        async with asyncio.timeout(timeout):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async for beat in self.beats():
                        if condition(beat):
                            return beat
                if self.process.poll() is not None:
                    raise AssertionError(f"The launcher ended: {self.process.returncode}\n{self.log.read_text()[-3000:]}")
                await asyncio.sleep(0.02)

    async def beats(self, interval: float = 0.2) -> AsyncIterator[dict[str, Any]]:
        async with self.session.get(f"http://launcher/v1/beats?interval={interval}") as response:
            async for line in response.content:
                yield json.loads(line)

    async def beat(self) -> dict[str, Any]:
        return await self.until(lambda _: True)

    async def promote(self, **fields: Any) -> dict[str, Any]:
        body = {"claim_id": "claim", "kernel_id": "kernel", "username": "ada", "env": {}, **fields}
        return await self.ok("POST", "/v1/promote", body)

    async def client(self, connection: dict[str, Any] | None = None) -> Client:
        connection = connection or (await self.ok("GET", "/v1/connection"))["connection"]
        client = Client(connection)
        self.clients.append(client)
        return await client.connected()

    def note_processes(self) -> set[int]:
        """Remember every process below the launcher, so that its end can be checked."""
        with contextlib.suppress(psutil.Error):
            self.seen |= {child.pid for child in psutil.Process(self.process.pid).children(recursive=True)}
        return self.seen

    async def ended(self, *, within: float = 10) -> int:
        deadline = time.monotonic() + within
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "The launcher does not end"
            await asyncio.sleep(0.01)
        return self.process.returncode

    async def nothing_left(self) -> None:
        """Every process that was seen below the launcher is gone."""
        deadline = time.monotonic() + 3
        while left := [pid for pid in self.seen if psutil.pid_exists(pid)]:
            assert time.monotonic() < deadline, [psutil.Process(pid).cmdline() for pid in left]
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        self.note_processes()
        if self.process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                await self.call("POST", "/v1/shutdown", {"grace_seconds": 0.2})
            try:
                await self.ended(within=10)
            finally:
                self.process.kill()
                self.process.wait()
        await self.session.close()
        await self.nothing_left()


class Members:
    """Starts launchers; everything of theirs is gone afterwards."""

    def __init__(self) -> None:
        self.started: list[Member] = []
        # Paths of Unix sockets are short; pytest's own directories are not.
        self.directory = Path(tempfile.mkdtemp(prefix="egl"))

    def configuration(self, argv: list[str], **changes: Any) -> dict[str, Any]:
        directory = self.directory / str(len(self.started))
        kernel = {
            "argv": argv,
            "env": {"PATH": os.environ["PATH"], "HOME": str(self.directory), "BASE": "base"},
            "kernel_name": "tested",
            "start_timeout_seconds": 30,
        }
        kernel.update(changes.pop("kernel", {}))
        return {
            "protocol": 1,
            "name": f"member-{len(self.started)}",
            "listen": f"unix:{directory}/socket",
            "token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
            "connection_directory": str(directory / "connections"),
            "kernel": kernel,
            **changes,
        }

    def start(self, argv: list[str], **changes: Any) -> Member:
        configuration = self.configuration(argv, **changes)
        directory = self.directory / str(len(self.started))
        directory.mkdir()
        session = self.session(directory / "socket")
        member = Member(directory, configuration, session=session)
        self.started.append(member)
        return member

    @staticmethod
    def session(path: Path) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), headers={"Authorization": f"Bearer {TOKEN}"})

    async def ready(self, python: str, **changes: Any) -> Member:
        """A launcher with an ipykernel of this Python, ready."""
        member = self.start(ipykernel(python), **changes)
        await member.until(lambda beat: beat["state"] == "ready")
        member.note_processes()
        return member

    async def close(self) -> None:
        try:
            for member in self.started:
                await member.close()
        finally:
            shutil.rmtree(self.directory)


def ipykernel(python: str) -> list[str]:
    return [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]


@contextlib.asynccontextmanager
async def plain_kernel(python: str, directory: Path) -> AsyncIterator[Client]:
    """`python -m ipykernel_launcher`, to compare with."""
    file = directory / "plain.json"
    argv = [word.replace("{connection_file}", str(file)) for word in ipykernel(python)]
    process = subprocess.Popen(
        argv,
        env={"PATH": os.environ["PATH"], "HOME": str(directory)},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            await asyncio.sleep(0.05)
            with contextlib.suppress(OSError, ValueError):
                client = Client(json.loads(file.read_text()))
                break
        try:
            yield await client.connected()
        finally:
            client.close()
    finally:
        process.kill()
        process.wait()
        file.unlink(missing_ok=True)
