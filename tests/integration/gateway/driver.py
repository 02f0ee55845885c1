"""Calls to a gateway as a client makes them, and counts of what it has: processes, files, threads, members."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from tornado.websocket import websocket_connect

from tests.servers import Gateway


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    body: Any
    headers: Mapping[str, str]
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """What exists on behalf of kernels: claimed members, directories of all members, listed kernels."""

    claimed: int
    members: frozenset[str]
    kernels: int


class Driver(Gateway):
    """A gateway and its REST and WebSocket clients. Answers of any status are returned, not raised."""

    def __init__(
        self, *, directory: Path, pool_size: int = 1, options: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(directory=directory, pool_size=pool_size, options=options, token=uuid.uuid4().hex)
        self.extra = dict(env or {})
        self.log = directory / "gateway.log"

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **self.extra}

    def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request. `body` is sent as JSON, `raw` as it is; `headers` replaces the token's."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        given = {"Authorization": f"token {self.token}"} if headers is None else dict(headers)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=data, headers=given)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
            decoded = None
            with contextlib.suppress(ValueError):
                decoded = json.loads(text)
            return Answer(status=response.status, body=decoded, headers=dict(response.headers), text=text)
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def launch(self, *, name: str | None = None, **env: str) -> str:
        """Start a kernel and return its id."""
        body: dict[str, Any] = {"env": env}
        if name is not None:
            body["name"] = name
        answer = self.call("POST", "/api/kernels", body)
        assert answer.status == 201, answer.text
        return str(answer.body["id"])

    def execute(self, kernel_id: str, code: str, *, timeout: float = 30.0) -> str:
        """Run a cell over the WebSocket; what it printed, or its error's name and value."""
        return asyncio.run(self.execute_soon(kernel_id, code, timeout=timeout))

    async def execute_soon(self, kernel_id: str, code: str, *, timeout: float = 30.0) -> str:
        url = f"ws://127.0.0.1:{self.port}/api/kernels/{kernel_id}/channels?session_id={uuid.uuid4().hex}&token={self.token}"
        socket = await websocket_connect(url, connect_timeout=timeout)
        try:
            message_id = uuid.uuid4().hex
            header = {"msg_id": message_id, "msg_type": "execute_request", "username": "", "session": "test", "version": "5.3"}
            content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
            request = {
                "header": header,
                "parent_header": {},
                "metadata": {},
                "content": content,
                "channel": "shell",
                "buffers": [],
            }
            await socket.write_message(json.dumps(request))
            return await asyncio.wait_for(_output(socket, message_id), timeout)
        except asyncio.TimeoutError as error:  # Python 3.10 has two kinds
            raise TimeoutError(f"no end of the cell within {timeout} s") from error
        finally:
            socket.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_drained(socket), 5.0)

    def pool(self, kernelspec: str = "python_pooled_local") -> dict[str, Any]:
        """The pool's own account of one kernelspec."""
        return dict(self.get("/api/egknative/pools").body["pools"][kernelspec])

    def inventory(self) -> Inventory:
        pools = self.get("/api/egknative/pools").body["pools"].values()
        directory = self.run_directory / "members"
        return Inventory(
            claimed=sum(pool["claimed"] for pool in pools),
            members=frozenset(path.name for path in directory.iterdir()) if directory.is_dir() else frozenset(),
            kernels=len(self.get("/api/kernels").body),
        )

    def settle(self, *, ready: int, timeout: float = 30.0) -> None:
        """Wait until the pool holds `ready` members and nothing boots or ends."""

        def settled() -> bool:
            pool = self.pool()
            return (pool["ready"], pool["booting"], pool["retiring"]) == (ready, 0, 0)

        wait_until(settled, timeout=timeout)

    def family(self) -> list[psutil.Process]:
        """The gateway's process and all below it, and the launchers, whoever their parent is."""
        found = {process.pid: process for process in self.launchers()}
        if self.process is not None:
            own = psutil.Process(self.process.pid)
            found[own.pid] = own
        for process in list(found.values()):
            with contextlib.suppress(psutil.Error):
                found.update({child.pid: child for child in process.children(recursive=True)})
        return list(found.values())

    def text_of_log(self) -> str:
        return self.log.read_text(errors="replace")


async def _drained(socket: Any) -> None:
    while await socket.read_message() is not None:
        pass


async def _output(socket: Any, message_id: str) -> str:
    printed = []
    while True:
        frame = await socket.read_message()
        assert frame is not None, "the gateway closed the WebSocket"
        message = json.loads(frame)
        if message["parent_header"].get("msg_id") != message_id:
            continue
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":
            printed.append(content["text"])
        elif kind == "execute_result":
            printed.append(content["data"]["text/plain"])
        elif kind == "error":
            printed.append(f"{content['ename']}: {content['evalue']}")
        elif kind == "status" and content["execution_state"] == "idle":
            return "".join(printed).strip()


def wait_until(condition: Callable[[], bool], *, timeout: float = 15.0) -> None:
    """Ask again and again. Fails the test when the time is up."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s"
        time.sleep(0.05)
