"""Small blocking clients: HTTP, the channels WebSocket in both subprotocols, and direct ZeroMQ. Nothing here sleeps or polls.

They exist so that what `scripts/bench` measures is the server's time: one connection each, TCP_NODELAY, one message read at a
time, no more decoded than is needed to know whose message it is. All times are seconds of `time.perf_counter()`.
"""

from __future__ import annotations

import dataclasses
import datetime
import http.client
import json
import socket
import struct
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import websocket
import zmq
from jupyter_client.session import DELIM as DELIMITER
from jupyter_client.session import Session

NODELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
V1 = "v1.kernel.websocket.jupyter.org"
_CONNECTION_CELL = """
import json
_application = get_ipython().kernel.parent
_names = ("ip", "shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
print(json.dumps({name: getattr(_application, name) for name in _names} | {"key": get_ipython().kernel.session.key.decode()}))
"""


class ClientError(Exception):
    """The server answered with an error, or a cell with a traceback."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """When a cell's first output and its idle status came, and when its request was sent."""

    sent: float
    output: float
    idle: float
    text: str

    @property
    def output_seconds(self) -> float:
        """From the request to the first output."""
        return self.output - self.sent

    @property
    def idle_seconds(self) -> float:
        """From the request to idle."""
        return self.idle - self.sent


class Http:
    """One kept-alive connection to a gateway."""

    def __init__(self, *, port: int, token: str, timeout: float = 120.0) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        self._headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer. Raises ClientError for a status of 400 and above."""
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, body=data, headers=self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise ClientError(f"{method} {path}: {answer.status} {content[:500].decode(errors='replace')}")
        return json.loads(content) if content and answer.headers.get_content_type() == "application/json" else content

    def close(self) -> None:
        self._connection.close()


def execute_request(code: str, *, session: str) -> dict[str, Any]:
    """An execute_request as JupyterLab sends it."""
    return {
        "header": {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "bench",
            "session": session,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        },
    }


class Channels:
    """The channels WebSocket of one kernel. `subprotocol`: None for the JSON text one, or V1."""

    def __init__(self, *, port: int, token: str, kernel_id: str, subprotocol: str | None = None, timeout: float = 120.0) -> None:
        self.session = uuid.uuid4().hex
        self._v1 = subprotocol == V1
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}/api/kernels/{kernel_id}/channels?session_id={self.session}",
            header=[f"Authorization: token {token}"],
            subprotocols=[subprotocol] if subprotocol else None,
            sockopt=NODELAY,
            timeout=timeout,
            enable_multithread=False,
            skip_utf8_validation=True,  # json decodes anyway; this library's own check costs more than the gateway
        )
        if self._v1 and self._socket.subprotocol != V1:
            raise ClientError("the server does not speak the v1 subprotocol")

    def cell(self, code: str) -> Cell:
        """Run one cell and read until it is idle. Raises ClientError when it fails."""
        request = execute_request(code, session=self.session)
        message_id = request["header"]["msg_id"]
        sent = time.perf_counter()
        self._send(request)
        return _until_idle(self._receive, message_id=message_id, sent=sent)

    def close(self) -> None:
        self._socket.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        if not self._v1:
            self._socket.send(json.dumps({**request, "channel": "shell"}))
            return
        parts = [b"shell", *(json.dumps(request[name]).encode() for name in ("header", "parent_header", "metadata", "content"))]
        offset = 8 * (1 + len(parts) + 1)
        offsets = [offset]
        for part in parts:
            offset += len(part)
            offsets.append(offset)
        self._socket.send_binary(struct.pack(f"<{1 + len(offsets)}Q", len(offsets), *offsets) + b"".join(parts))

    def _receive(self) -> tuple[str, str | None, Any]:
        frame = self._socket.recv()
        if isinstance(frame, str):
            message = json.loads(frame)
            return message["msg_type"], message["parent_header"].get("msg_id"), message["content"]
        count = struct.unpack_from("<Q", frame)[0]
        offsets = struct.unpack_from(f"<{count}Q", frame, 8)
        header, parent, _metadata, content = (frame[offsets[i] : offsets[i + 1]] for i in range(1, 5))
        return json.loads(header)["msg_type"], json.loads(parent).get("msg_id"), content


class Direct:
    """Shell and iopub of one kernel by ZeroMQ, as a client on the kernel's own machine uses them."""

    def __init__(self, connection: Mapping[str, Any], *, timeout: float = 120.0) -> None:
        self._session = Session(
            key=connection["key"].encode(), signature_scheme=connection.get("signature_scheme", "hmac-sha256")
        )
        self._timeout = timeout
        self._context = zmq.Context()
        host = "127.0.0.1" if connection["ip"] in {"0.0.0.0", "*"} else connection["ip"]
        self._shell = self._context.socket(zmq.DEALER)
        self._iopub = self._context.socket(zmq.SUB)
        self._iopub.setsockopt(zmq.SUBSCRIBE, b"")
        for connected, port in ((self._shell, connection["shell_port"]), (self._iopub, connection["iopub_port"])):
            connected.linger = 0
            connected.rcvtimeo = int(timeout * 1000)
            connected.connect(f"tcp://{host}:{port}")

    def wait_ready(self) -> None:
        """Until the kernel has answered and this client's subscription is proven by the idle status of a kernel_info_request.

        `wait_for_ready` of jupyter_client sleeps for 400 ms of its own. This asks again only when the kernel answered and its
        status did not come: the subscription was not there yet.
        """
        deadline = time.perf_counter() + self._timeout
        while time.perf_counter() < deadline:
            request = self._session.send(self._shell, "kernel_info_request", {})
            self._shell.recv_multipart()
            while self._iopub.poll(100):
                _message_type, parent_id, content = self._receive()
                if parent_id == request["header"]["msg_id"] and _content(content).get("execution_state") == "idle":
                    return
        raise ClientError("the kernel did not become ready")

    def drain(self) -> None:
        """Throw away what other clients' cells have published, and old replies."""
        for connected in (self._shell, self._iopub):
            while connected.poll(0):
                connected.recv_multipart()

    def cell(self, code: str) -> Cell:
        """Run one cell and read until it is idle. Raises ClientError when it fails."""
        request = execute_request(code, session=self._session.session)
        message_id = request["header"]["msg_id"]
        message = self._session.msg("execute_request", request["content"], header=request["header"])
        sent = time.perf_counter()
        self._session.send(self._shell, message)
        cell = _until_idle(self._receive, message_id=message_id, sent=sent)
        self._shell.recv_multipart()
        return cell

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _receive(self) -> tuple[str, str | None, Any]:
        frames = self._iopub.recv_multipart()
        header, parent, _metadata, content = frames[frames.index(DELIMITER) + 2 :][:4]
        return json.loads(header)["msg_type"], json.loads(parent).get("msg_id"), content


def _until_idle(receive: Callable[[], tuple[str, str | None, Any]], *, message_id: str, sent: float) -> Cell:
    """Read what a request brings, until the kernel is idle again; the clocks of both ways stop at the same places."""
    output, text = 0.0, ""
    while True:
        message_type, parent_id, content = receive()
        if parent_id != message_id:
            continue
        if message_type == "stream":
            output = output or time.perf_counter()
            text += _content(content)["text"]
        elif message_type == "error":
            raise ClientError(str(_content(content)["evalue"]))
        elif message_type == "status" and _content(content)["execution_state"] == "idle":
            return Cell(sent=sent, output=output, idle=time.perf_counter(), text=text)


def connection_of(channels: Channels) -> dict[str, Any]:
    """Ask a Python kernel, in a cell, where it listens and with which key: for comparing with direct ZeroMQ."""
    answer: dict[str, Any] = json.loads(channels.cell(_CONNECTION_CELL).text)
    return answer


def _content(content: Any) -> Any:
    return content if isinstance(content, dict) else json.loads(content)
