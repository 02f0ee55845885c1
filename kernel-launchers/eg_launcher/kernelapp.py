"""IPKernelApp that initialises everything and binds nothing until told to.

A spare must not hold the ports that the running kernel listens on, and everything else about it should be done. So sockets
are made as ever and their binding is kept for later, each on the thread that by then owns the socket. ipykernel 6 and 7.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import errno
import os
import socket
import time
from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from tornado.ioloop import IOLoop
from traitlets.config import Config

# How long a predecessor's sockets may take to go away.
_BIND_SECONDS = 2.0
_WARM_SECONDS = 2.0
# Where only this process can reach the shell channel.
_INSIDE = "inproc://eg-launcher-warm-up"


class DeferredKernelApp(IPKernelApp):  # type: ignore[misc]
    """Binds in `bind_channels`. Connection files are the launcher's business; so is watching the parent."""

    def prepare(self, boot: dict[str, Any]) -> None:
        """Take ports, key and connection file from the launcher's `boot` message."""
        identity = boot["identity"]
        self._unbound: list[tuple[Any, int]] = []
        self.ip = boot["ip"]
        self.shell_port, self.iopub_port, self.stdin_port, self.control_port, self.hb_port = boot["ports"]
        self.connection_file = identity["connection_file"]
        self.session.key = identity["key"].encode()
        if identity["username"]:
            self.session.username = identity["username"]

    def init_connection_file(self) -> None:
        self.connection_file = self.connection_file  # `-f` in the arguments is the same path

    def parse_command_line(self, argv: Any = None) -> None:
        """Building traitlets' parser takes 20 ms and megabytes; for a connection file alone there is nothing to parse."""
        arguments = list(argv or [])
        if len(arguments) == 2 and arguments[0] == "-f":
            self.cli_config = Config()
            self.extra_args: list[str] = []
        else:
            super().parse_command_line(arguments)

    def write_connection_file(self, **_: Any) -> None:
        pass

    def init_poller(self) -> None:
        pass

    def log_connection_info(self) -> None:
        self._ports = {
            "shell": self.shell_port,
            "iopub": self.iopub_port,
            "stdin": self.stdin_port,
            "hb": self.hb_port,
            "control": self.control_port,
        }

    def _bind_socket(self, s: Any, port: int) -> int:
        self._unbound.append((s, port))
        return port

    def init_sockets(self) -> None:
        super().init_sockets()
        self.shell_socket.bind(_INSIDE)

    def init_heartbeat(self) -> None:
        pass

    def bind_channels(self) -> None:
        """Bind all five. Raises zmq.ZMQError (address in use past the time limit), OSError, TimeoutError."""
        shell_thread = getattr(self, "shell_channel_thread", None)
        control_loop = self.control_thread.io_loop
        # In the order in which `init_sockets` made them: shell, stdin, control, iopub. The heartbeat's context has one more.
        (shell, stdin, control, iopub) = self._unbound
        pending = [
            _on_loop(control_loop, self._bind, *control),
            _on_loop(self.iopub_thread.io_loop, self._bind, *iopub),
        ]
        if shell_thread is not None:
            pending.append(_on_loop(shell_thread.io_loop, self._bind, *shell))
        else:
            self._bind(*shell)
        self._bind(*stdin)
        for future in pending:
            future.result(timeout=_BIND_SECONDS + 1)
        endpoint = f"tcp://{'127.0.0.1' if self.ip in ('*', '0.0.0.0') else self.ip}:{self.shell_port}"
        _on_loop(control_loop, self.debug_shell_socket.connect, endpoint)
        IPKernelApp.init_heartbeat(self)
        self._wait_for_heartbeat()

    def leave(self) -> None:
        """Close all channels now; ipykernel does it last of all, when exit handlers have run."""
        atexit.unregister(self.close)
        self.close()

    def _bind(self, sock: Any, port: int) -> None:
        deadline = time.monotonic() + _BIND_SECONDS
        while True:
            try:
                sock.bind(f"tcp://{self.ip}:{port}")
                return
            except zmq.ZMQError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.002)

    def _wait_for_heartbeat(self) -> None:
        """The heartbeat binds on its own thread and would fail there unheard."""
        deadline = time.monotonic() + _BIND_SECONDS
        address = ("127.0.0.1" if self.ip in ("*", "0.0.0.0") else self.ip, self.hb_port)
        while True:
            try:
                socket.create_connection(address, timeout=_BIND_SECONDS).close()
                return
            except OSError:
                if time.monotonic() > deadline or not self.heartbeat.is_alive():
                    raise
            time.sleep(0.0005)


def _on_loop(loop: IOLoop, function: Any, *arguments: Any) -> concurrent.futures.Future[None]:
    """Run a function on another thread's loop; zmq sockets belong to one thread."""
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def call() -> None:
        try:
            function(*arguments)
        except (zmq.ZMQError, OSError) as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    loop.add_callback(call)
    return future


def make(boot: dict[str, Any]) -> DeferredKernelApp:
    """The application, initialised: all but bound, all but running."""
    app: DeferredKernelApp = DeferredKernelApp.instance()
    app.prepare(boot)
    app.initialize(boot["identity"]["arguments"])
    return app


async def warm(app: DeferredKernelApp) -> None:
    """Run what a first cell runs, all of its way, with no trace: what is loaded late is loaded now, not when a user waits.

    Before the channels are bound, so that nobody hears of it.
    """
    client = app.context.socket(zmq.DEALER)
    client.linger = 0
    try:
        client.connect(_INSIDE)
        content = {"code": "None", "silent": True, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        app.session.send(client, "execute_request", content)
        deadline = time.monotonic() + _WARM_SECONDS
        while not client.poll(0) and time.monotonic() < deadline:  # noqa: ASYNC110 - libzmq sets no Event
            await asyncio.sleep(0.001)
    finally:
        client.close()


def launcher_script() -> str:
    """What `sys.argv[0]` is after `python -m ipykernel_launcher`."""
    import ipykernel

    return os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(ipykernel.__file__))), "ipykernel_launcher.py")
