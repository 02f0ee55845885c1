"""A real ipykernel, a real tornado server with the handler, and clients made of sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from jupyter_client import BlockingKernelClient
from jupyter_server.auth.authorizer import AllowAllAuthorizer
from tornado import httpserver, web
from tornado.netutil import bind_sockets

from eg_knative.gateway.channels import ChannelsHandler
from eg_knative.gateway.relays import Relays
from eg_knative.wire.channels import ChannelSet
from eg_knative.wire.control import ConnectionInfo
from tests.integration.channels.raw_client import RawClient


@dataclasses.dataclass
class Event:
    kind: str
    message: str | None = None
    exit: Any = None
    connection: ConnectionInfo | None = None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


class KernelProcess:
    """An ipykernel of its own, as a RelayedKernel. Restarting it is the test's business; events are told as a pool would."""

    def __init__(self, directory: Path) -> None:
        self.kernel_id = str(uuid.uuid4())
        self.directory = directory
        self.listeners: list[Callable[[Any], None]] = []
        self.prepared: ChannelSet | None = None
        self.connection = self.new_connection()
        self.start()

    def new_connection(self) -> ConnectionInfo:
        shell, iopub, stdin, control, hb = free_ports(5)
        return ConnectionInfo(
            ip="127.0.0.1",
            transport="tcp",
            shell_port=shell,
            iopub_port=iopub,
            stdin_port=stdin,
            control_port=control,
            hb_port=hb,
            key=secrets.token_hex(16),
            signature_scheme="hmac-sha256",
            kernel_name="python3",
        )

    def start(self) -> None:
        path = self.directory / f"kernel-{uuid.uuid4().hex}.json"
        path.write_text(json.dumps(dataclasses.asdict(self.connection)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", str(path), "--HistoryManager.enabled=False"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "IPYTHONDIR": str(self.directory / "ipython"),
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            },
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def take_channels(self) -> ChannelSet | None:
        prepared, self.prepared = self.prepared, None
        return prepared

    def add_listener(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def tell(self, kind: str, **details: Any) -> None:
        for listener in tuple(self.listeners):
            listener(Event(kind, **details))


class FakeKernelManager:
    """Stands for EG's mapping kernel manager: the names that the handler uses, and the counts that a test looks at."""

    allow_tracebacks = True
    traceback_replacement_message = "hidden"

    def __init__(self) -> None:
        self.allowed_message_types: list[str] = []
        self.connected: dict[str, int] = {}

    def check_kernel_id(self, kernel_id: str) -> None:
        if kernel_id not in self.connected:
            raise web.HTTPError(404, "Kernel does not exist.")

    def notify_connect(self, kernel_id: str) -> None:
        self.connected[kernel_id] += 1

    def notify_disconnect(self, kernel_id: str) -> None:
        self.connected[kernel_id] -= 1


class Gateway:
    """A tornado server with the handler alone."""

    def __init__(self, context: zmq.Context[Any], **settings: Any) -> None:
        self.relays = Relays(context=context)
        self.manager = FakeKernelManager()
        self.context = context
        self.activity: list[tuple[str, float]] = []
        application = web.Application(
            [(r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/channels", ChannelsHandler)],
            kernel_manager=self.manager,
            kernel_relays=self.relays,
            authorizer=AllowAllAuthorizer(),
            base_url="/",
            allow_remote_access=True,
            **settings,
        )
        self.settings = application.settings
        self.server = httpserver.HTTPServer(application)
        sockets = bind_sockets(0, "127.0.0.1")
        self.server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.clients: list[RawClient] = []

    def attach(self, kernel: KernelProcess) -> None:
        self.manager.connected[kernel.kernel_id] = 0
        self.relays.attach(kernel, on_activity=lambda relay: self.activity.append((relay.execution_state, relay.last_activity)))

    def url(self, kernel: KernelProcess) -> str:
        return f"ws://127.0.0.1:{self.port}/api/kernels/{kernel.kernel_id}/channels"

    async def client(self, kernel: KernelProcess, *, session_id: str | None = None, **options: Any) -> RawClient:
        client = await RawClient.open(self.url(kernel), session_id=session_id or uuid.uuid4().hex, **options)
        self.clients.append(client)
        return client

    async def close(self) -> None:
        for client in self.clients:
            client.writer.close()
        await self.relays.close()
        self.server.stop()
        await self.server.close_all_connections()


@pytest.fixture(scope="session")
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(scope="session")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelProcess]:
    """One kernel, up and answering, for all tests that leave it as it was."""
    kernel = KernelProcess(tmp_path_factory.mktemp("kernel"))
    try:
        client = BlockingKernelClient()
        client.load_connection_info(dataclasses.asdict(kernel.connection) | {"key": kernel.connection.key.encode()})
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.stop_channels()
        client.context.destroy(linger=0)
        yield kernel
    finally:
        kernel.end()


@pytest.fixture
def own_kernel(tmp_path: Path) -> Iterator[KernelProcess]:
    """A kernel that the test may kill."""
    kernel = KernelProcess(tmp_path)
    yield kernel
    kernel.end()


@pytest.fixture
async def gateway(context: zmq.Context[Any]) -> AsyncIterator[Gateway]:
    gateway = Gateway(context)
    yield gateway
    await gateway.close()
    leftovers = [task for task in asyncio.all_tasks() if "_proof" in repr(task)]
    assert not leftovers
