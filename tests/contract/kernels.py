"""A few words of the Jupyter protocol, spoken straight over ZeroMQ: enough to prove that a kernel is there and whose it is."""

from __future__ import annotations

import ast
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.session import Session

from eg_knative.wire.control import ConnectionInfo


@contextlib.asynccontextmanager
async def shell(connection: ConnectionInfo) -> AsyncIterator[Shell]:
    """A shell channel to a kernel."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://{connection.ip}:{connection.shell_port}")
    try:
        yield Shell(socket, Session(key=connection.key.encode(), signature_scheme=connection.signature_scheme))
    finally:
        socket.close()
        context.term()


class Shell:
    """One client of one kernel."""

    def __init__(self, socket: zmq.asyncio.Socket, session: Session) -> None:
        self._socket = socket
        self._session = session

    async def send(self, code: str, **expressions: str) -> str:
        """Ask for execution; returns the message id."""
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": expressions, "allow_stdin": False}
        message = self._session.msg("execute_request", content=content)
        await self._socket.send_multipart(self._session.serialize(message))
        return str(message["header"]["msg_id"])

    async def reply(self, *, timeout: float = 30.0) -> dict[str, Any]:
        """The content of the next reply."""
        parts = await asyncio.wait_for(self._socket.recv_multipart(), timeout)
        _, parts = self._session.feed_identities(parts)
        return dict(self._session.deserialize(parts)["content"])


async def evaluate(connection: ConnectionInfo, code: str, expression: str = "None") -> Any:
    """Run code, then give the value of an expression (a literal)."""
    async with shell(connection) as kernel:
        await kernel.send(code, value=expression)
        reply = await kernel.reply()
    assert reply["status"] == "ok", reply
    value = reply["user_expressions"]["value"]
    assert value["status"] == "ok", value
    return ast.literal_eval(value["data"]["text/plain"])
