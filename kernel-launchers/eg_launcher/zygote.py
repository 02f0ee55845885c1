"""The zygote: a single-threaded process in the kernel's interpreter that has imported everything and forks.

Role `zygote` forks kernels, twice, so that they become children of the launcher (a subreaper). Role `nursery` forks launchers,
each with a zygote of its own beside it, so that all of a pool's members share one set of imported pages. It never runs an event
loop or a thread; if an import started one it refuses to fork and says which. It holds nothing of any member's identity.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from eg_launcher import framing, memory, system
from eg_launcher.errors import FramingError

# Read when a library is loaded; more than one would start threads before the first fork. `inside` gives the kernel its own.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
# pyarrow's allocator, and with it pandas where pyarrow is installed, starts a thread that gives memory back in the background.
# Without it that is done by whoever allocates next.
_ARROW_ALLOCATOR = ("JE_ARROW_MALLOC_CONF", "background_thread:false")
# What a kernel imports while it starts and at its first cell; without these it would do so after the fork, in pages of its own.
_KERNEL_MODULES = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.datapub")
_OPTIONAL_MODULES = (
    "comm.base_comm",
    "decimal",
    "faulthandler",
    "ipykernel.connect",
    "ipykernel.control",
    "ipykernel.debugger",
    "ipykernel.displayhook",
    "ipykernel.heartbeat",
    "ipykernel.iostream",
    "ipykernel.shellchannel",
    "ipykernel.subshell",
    "ipykernel.subshell_manager",
    "IPython.core.async_helpers",
    "IPython.core.completer",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.magics",
    "IPython.core.oinspect",
    "IPython.core.pylabtools",
    "IPython.extensions.storemagic",
    "numbers",
    "pdb",
    "psutil",
    "sqlite3",
    "tornado.platform.asyncio",
    "uuid",
    "zmq.eventloop.zmqstream",
)
_LAUNCHER_MODULES = ("eg_launcher.__main__", "eg_launcher.app", "eg_launcher.launcher")

# What a forked child goes on to do, once the zygote's own frames are unwound.
_Child = Callable[[], None]


def serve(role: str, descriptor: int) -> None:
    """Serve requests on an inherited socket until its end of file. In a forked child it returns when that child is done."""
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    system.die_with_parent(os.getppid())
    system.set_title([sys.executable, f"eg-launcher-{role}"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started us
    child = _Zygote(sock, nursery=role == "nursery").run()
    if child is not None:
        child()


class _Zygote:
    def __init__(self, sock: socket.socket, *, nursery: bool, prepared: bool = False) -> None:
        self._socket = sock
        self._nursery = nursery
        self._prepared = prepared
        self._refusal: str | None = None
        self._wakeup: tuple[int, int] | None = None

    def run(self) -> _Child | None:
        if self._nursery:
            self._watch_children()
        while True:
            if self._wakeup is not None and not self._wait_readable():
                continue
            try:
                message, descriptors = framing.receive(self._socket)
            except (FramingError, OSError):
                return None
            if message is None:
                return None
            child = self._answer(message, descriptors)
            if child is not None:
                return child

    def _answer(self, message: dict[str, Any], descriptors: list[int]) -> _Child | None:
        op = message.get("op")
        answer: dict[str, Any] = {"op": op, "id": message.get("id")}
        child: _Child | None = None
        try:
            if op == "hello":
                answer.update(self._prepare(message.get("pre_import") or []))
            elif op in ("fork_kernel", "fork_launcher"):
                self._check_threads()
                fork = self._fork_kernel if op == "fork_kernel" else self._fork_launcher
                pid, child = fork(message, descriptors)
                if child is not None:
                    return child
                answer["pid"] = pid
            else:
                answer["error"] = f"A zygote cannot {op!r}"
        except Exception as error:  # noqa: BLE001 - an import may raise anything; the client must hear of it, whatever it is
            answer["error"] = f"{type(error).__name__}: {error}"[:1500]
        finally:
            if child is None:
                for descriptor in descriptors:
                    os.close(descriptor)
        framing.send(self._socket, answer)
        return None

    # Imports

    def _prepare(self, pre_import: Sequence[str]) -> dict[str, Any]:
        notices: list[str] = []
        if self._prepared:
            return {"pid": os.getpid(), "notices": notices}
        allocator, threadless = _ARROW_ALLOCATOR
        saved = {name: os.environ.get(name) for name in (*THREAD_VARIABLES, allocator)}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        os.environ[allocator] = ",".join(filter(None, (saved[allocator], threadless)))
        try:
            importlib.import_module("ipykernel.kernelapp")
            for name in (*_KERNEL_MODULES[1:], *_OPTIONAL_MODULES):
                self._import(name, notices=None)
            for name in pre_import:
                self._import(name, notices=notices)
            if self._nursery:
                for name in _LAUNCHER_MODULES:
                    importlib.import_module(name)
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        importlib.import_module("eg_launcher.inside")
        self._check_threads()
        memory.settle()
        return {"pid": os.getpid(), "notices": notices}

    def _import(self, name: str, *, notices: list[str] | None) -> None:
        before = system.thread_count()
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a module raises at import, it only costs its warmth
            if notices is not None:
                notices.append(f"Module {name} was not imported ahead: {type(error).__name__}: {error}"[:500])
        if system.thread_count() > before and self._refusal is None:
            self._refusal = f"Importing {name} started a thread"

    def _check_threads(self) -> None:
        count = system.thread_count()
        if count > 1:
            raise RuntimeError(f"{self._refusal or 'Something started a thread'}; a process of {count} threads is not forked")

    # Forks

    def _fork_kernel(self, message: dict[str, Any], descriptors: list[int]) -> tuple[int, _Child | None]:
        control, output = descriptors
        read_end, write_end = os.pipe()
        between = os.fork()
        if between == 0:
            try:
                pid = os.fork()
                if pid:
                    os.write(write_end, b"%d" % pid)
            except BaseException:  # noqa: BLE001 - no frame of the zygote may run on in this process
                os._exit(1)
            if pid:
                os._exit(0)
            os.close(read_end)
            os.close(write_end)
            launcher = int(message["launcher_pid"])
            return 0, lambda: self._be_kernel(control=control, output=output, launcher_pid=launcher)
        os.close(write_end)
        os.waitpid(between, 0)
        with os.fdopen(read_end, "rb") as pipe:
            pid_text = pipe.read(32)
        if not pid_text:
            raise RuntimeError("The fork failed: no more processes, or no memory")
        return int(pid_text), None

    def _be_kernel(self, *, control: int, output: int, launcher_pid: int) -> None:
        self._become_child(output)
        os.setsid()
        from eg_launcher.inside import run

        run(control, launcher_pid=launcher_pid)

    def _fork_launcher(self, message: dict[str, Any], descriptors: list[int]) -> tuple[int, _Child | None]:
        (log,) = descriptors
        pid = os.fork()
        if pid:
            return pid, None
        return 0, lambda: self._be_launcher(config=message["config"], log=log)

    def _be_launcher(self, *, config: dict[str, Any], log: int) -> None:
        self._become_child(log)
        os.setsid()
        system.become_subreaper()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        launcher = os.getpid()
        if os.fork() == 0:
            # The member's own zygote stays as clean as the nursery was.
            ours.close()
            if system.die_with_parent(launcher) or not system.LINUX:
                system.set_title([sys.executable, "eg-launcher-zygote"])
                child = _Zygote(theirs, nursery=False, prepared=True).run()
                if child is not None:
                    child()
            return
        theirs.close()
        from eg_launcher.__main__ import run_forked

        run_forked(config=config, zygote_socket=ours)

    def _become_child(self, output: int) -> None:
        """What every forked child does first: let go of the zygote's own, take its output."""
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._socket.close()
        if self._wakeup is not None:
            for descriptor in self._wakeup:
                os.close(descriptor)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)

    # A nursery's children

    def _watch_children(self) -> None:
        self._wakeup = os.pipe()
        for descriptor in self._wakeup:
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _wait_readable(self) -> bool:
        """Wait for a request (True) or report children that ended (False)."""
        assert self._wakeup is not None
        readable, _, _ = select.select([self._socket.fileno(), self._wakeup[0]], [], [])
        if self._wakeup[0] in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup[0], 4096)
            self._report_children()
            return False
        return True

    def _report_children(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = {
                "op": "exit",
                "pid": pid,
                "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            }
            try:
                framing.send(self._socket, ended)
            except OSError:
                return  # nobody listens any more; end of file comes next
