"""The little of the Jupyter messaging protocol that a launcher speaks: signed requests, and reading a status.

`KernelChannels` is one kernel process's connection: its iopub for busy and idle, its control channel for shutdown and interrupt.
libzmq's threads start with the first of them, so an unclaimed launcher has none.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.asyncio

_DELIMITER = b"<IDS|MSG>"
_STATES = ("busy", "idle", "starting")


def request(*, kind: str, content: dict[str, Any], key: str) -> list[bytes]:
    """A signed request's frames."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": kind,
        "username": "launcher",
        "session": uuid.uuid4().hex,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "version": "5.3",
    }
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    signature = hmac.new(key.encode(), digestmod=hashlib.sha256)
    for part in parts:
        signature.update(part)
    return [_DELIMITER, signature.hexdigest().encode(), *parts]


def status_of(frames: Sequence[bytes]) -> str | None:
    """busy, idle or starting if these frames are a status message. Only messages that look like one are parsed."""
    try:
        start = frames.index(_DELIMITER)
        header, content = frames[start + 2], frames[start + 5]
    except (ValueError, IndexError):
        return None
    if b'"status"' not in header or len(content) > 4096:
        return None
    try:
        if json.loads(header).get("msg_type") != "status":
            return None
        state = json.loads(content).get("execution_state")
    except (ValueError, AttributeError, RecursionError):
        return None
    return state if state in _STATES else None


def _endpoint(ip: str, port: int) -> str:
    host = "127.0.0.1" if ip in ("0.0.0.0", "*") else "[::1]" if ip == "::" else f"[{ip}]" if ":" in ip else ip
    return f"tcp://{host}:{port}"


def _context() -> zmq.asyncio.Context:
    return zmq.asyncio.Context.instance()


def _socket(kind: int, endpoint: str) -> zmq.asyncio.Socket:
    sock = _context().socket(kind)
    sock.linger = 0
    sock.set(zmq.RECONNECT_IVL, 10)
    if "[" in endpoint:
        sock.set(zmq.IPV6, 1)
    sock.connect(endpoint)
    return sock


class KernelChannels:
    """Follow one kernel process. Close it before the next one starts."""

    def __init__(
        self, *, ip: str, iopub_port: int, control_port: int, key: str, python: bool, on_state: Callable[[str], None]
    ) -> None:
        self._key = key
        self._on_state = on_state
        self._iopub = _socket(zmq.SUB, _endpoint(ip, iopub_port))
        # ipykernel's topics: `kernel.ID.status`; its stream and display topics need not be sent to us at all.
        self._iopub.set(zmq.SUBSCRIBE, b"kernel." if python else b"")
        self._iopub.set(zmq.RCVHWM, 1000)
        self._control = _socket(zmq.DEALER, _endpoint(ip, control_port))
        self._control.set(zmq.SNDHWM, 100)
        self._follower = asyncio.create_task(self._follow(), name="kernel status")

    async def ask(self, *, kind: str, content: dict[str, Any]) -> None:
        """Send a request on the control channel; its reply is not waited for. Raises asyncio.TimeoutError after 1 s."""
        await asyncio.wait_for(self._control.send_multipart(request(kind=kind, content=content, key=self._key)), 1.0)

    async def close(self) -> None:
        """Idempotent."""
        self._follower.cancel()
        await asyncio.gather(self._follower, return_exceptions=True)
        self._iopub.close()
        self._control.close()

    async def _follow(self) -> None:
        while True:
            state = status_of(await self._iopub.recv_multipart())
            if state is not None:
                self._on_state(state)


async def wait_until_bound(*, ip: str, shell_port: int, key: str) -> None:
    """Until a kernel answers kernel_info_request on its shell channel. For kernels that we are not inside of; cancel it."""
    sock = _socket(zmq.DEALER, _endpoint(ip, shell_port))
    try:
        await sock.send_multipart(request(kind="kernel_info_request", content={}, key=key))
        await sock.recv_multipart()
    finally:
        sock.close()


def close_context() -> None:
    """End libzmq's threads, if there are any."""
    if zmq.asyncio.Context._instance is not None:
        _context().destroy(linger=0)
