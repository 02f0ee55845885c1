"""What runs within the kernel's process: boot it, wait if it is a spare, bind, take an identity.

The launcher speaks over a socketpair (see framing): `boot` with an identity, then, for a spare, `activate`; for a kernel that
belongs to nobody yet, `promote` with another identity while it runs. Both sides close the socket as soon as the identity is
final, so no user's code ever runs beside it. Works with ipykernel 6 and 7; a kernel class that does not go through
IPKernelApp's initialisation gets an `error` and the launcher starts it plainly.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from typing import Any

from tornado.ioloop import IOLoop

from eg_launcher import framing, kernelapp, reseed, system
from eg_launcher.errors import FramingError

_kept: list[Any] = []
_OURS = tuple(
    ["eg_launcher"]
    + [
        f"eg_launcher.{file_name[:-3]}"
        for file_name in os.listdir(os.path.dirname(os.path.abspath(__file__)))
        if file_name.endswith(".py")
    ]
)


def run(descriptor: int, *, launcher_pid: int | None = None) -> None:
    """Be a kernel; returns when the kernel was shut down. `launcher_pid`: given when forked (by a process in between)."""
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    if launcher_pid is not None:
        _wait_for_parent(launcher_pid)
    try:
        boot, _ = framing.receive(sock)
    except (FramingError, OSError):
        return
    if boot is None:
        return
    if not system.die_with_parent(int(boot["launcher_pid"])) and system.LINUX:
        return  # the launcher is gone, and nobody would end this process
    try:
        kernel = _boot(sock, boot)
    except Exception as error:  # the launcher must know why, then it is anybody's exception
        _report_error(sock, error)
        raise
    kernel.start()


def _wait_for_parent(launcher_pid: int) -> None:
    """A forked kernel's first parent ends at once; the parent-death signal is for the one that adopts it."""
    deadline = time.monotonic() + 5
    while os.getppid() != launcher_pid and time.monotonic() < deadline:
        time.sleep(0.0005)


def _boot(sock: socket.socket, boot: dict[str, Any]) -> _Kernel:
    identity = boot["identity"]
    reseed.reseed()
    _set_process(identity)
    _forget_package()
    return _Kernel(sock, boot)


class _Kernel:
    """IPKernelApp, initialised without binding, and what it takes to give it another identity."""

    def __init__(self, sock: socket.socket, boot: dict[str, Any]) -> None:
        self._socket = sock
        self._bind = bool(boot["bind"])
        self._final = bool(boot["final"])
        # Both may have been changed by what a plain start would also change.
        before = dict(os.environ)
        self._app = kernelapp.make(boot)
        self._pools = reseed.ThreadPools()
        if self._final:
            self._pools.restore(os.environ)
        self._additions = {name: value for name, value in os.environ.items() if name not in before}

    def start(self) -> None:
        """Run until the kernel is shut down."""
        IOLoop.current().add_callback(self._begin)
        self._app.start()
        # Its successor may take the ports now; exit handlers and open files take the time they need.
        self._app.leave()

    async def _begin(self) -> None:
        """First thing on the kernel's own loop: what it takes to be of use."""
        try:
            if not (self._bind and self._final):
                await kernelapp.warm(self._app)  # else somebody waits for this very process
            if self._bind:
                self._app.bind_channels()
        except Exception as error:  # noqa: BLE001 - as in `run`: the launcher must know
            self._give_up(error)
            return
        _report(self._socket, {"op": "bound" if self._bind else "initialised"})
        if self._bind and self._final:
            self._socket.close()
        else:
            IOLoop.current().add_handler(self._socket.fileno(), self._on_message, IOLoop.READ)

    def _on_message(self, descriptor: int, _events: int) -> None:
        """`activate` for a spare, `promote` for a pool's kernel; then nothing more is said over this socket."""
        IOLoop.current().remove_handler(descriptor)
        try:
            message, _ = framing.receive(self._socket)
            op = message.get("op") if message is not None else None
            if op == "activate":
                self._app.bind_channels()
                _report(self._socket, {"op": "bound"})
            elif message is not None and op == "promote":
                started = time.perf_counter()
                self._promote(message["identity"])
                _report(self._socket, {"op": "promoted", "seconds": time.perf_counter() - started})
        except Exception as error:  # noqa: BLE001 - whatever it is, the launcher must hear of it and start a fresh process
            self._give_up(error)
            return
        self._socket.close()

    def _give_up(self, error: Exception) -> None:
        _report_error(self._socket, error)
        self._socket.close()
        IOLoop.current().stop()

    def _promote(self, identity: dict[str, Any]) -> None:
        app = self._app
        # The key first: from here on nothing signed with the pool's is handled.
        app.session.key = identity["key"].encode()
        app.session.username = identity["username"]
        _set_process(identity)
        self._pools.restore(os.environ)  # not before: an idle kernel's idle threads cost memory
        for name, value in self._additions.items():
            os.environ.setdefault(name, value)
        shell = app.shell
        if shell is not None:
            shell.init_environment()
            shell.starting_dir = identity["working_directory"]
            for history in {id(each): each for each in (shell.user_ns.get("_dh"), shell.user_ns_hidden.get("_dh"))}.values():
                if isinstance(history, list):
                    history[:] = [identity["working_directory"]]
        app.connection_file = identity["connection_file"]
        app.argv = identity["arguments"]


def _set_process(identity: dict[str, Any]) -> None:
    """Environment, directory, argv and title of this process, exactly."""
    if dict(os.environ) != identity["env"]:
        os.environ.clear()
        os.environ.update(identity["env"])
        if hasattr(time, "tzset"):
            time.tzset()
    os.chdir(identity["working_directory"])
    sys.argv[:] = [kernelapp.launcher_script(), *identity["arguments"]]
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = identity["title"]
    system.set_title(identity["title"])


def _forget_package() -> None:
    """The kernel has what its own environment has. Listed, not searched for: looking at every name in sys.modules writes to the
    page of each (its reference count), and so does freeing a module, which is why they are kept."""
    for name in _OURS:
        module = sys.modules.pop(name, None)
        if module is not None:
            _kept.append(module)


def _report(sock: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the launcher is gone; so is this process, in a moment
        framing.send(sock, message)


def _report_error(sock: socket.socket, error: Exception) -> None:
    _report(sock, {"op": "error", "message": f"{type(error).__name__}: {error}"[:2000]})
