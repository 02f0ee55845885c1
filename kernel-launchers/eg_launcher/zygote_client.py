"""The asyncio side of a zygote: start one, ask it for kernels or launchers, learn of its end.

For a launcher (kernels) and for the local substrate (a *nursery*: launchers). It promises no warm start: every
method raises `ZygoteError` with a sentence that says what went wrong, within its time limit, and the caller falls back to an
ordinary start. After the first ZygoteError that leaves `alive` False the object is of no more use; close it and start another.

    nursery = await Zygote.start(
        python=["/usr/bin/python3"],         # interpreter and its own flags: see `interpreter_of(argv)`
        env={...}, cwd="/", pre_import=["pandas"], log_fd=2,
        role="nursery", on_exit=lambda child: ..., on_death=lambda message: ...,
    )
    pid = await nursery.fork_launcher(config={...}, log_fd=fd)      # the launcher protocol's configuration object
    await nursery.close()                                           # launchers live on
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eg_launcher.errors import FramingError, ZygoteError
from eg_launcher.framing import Channel

START_TIMEOUT_SECONDS = 60.0
FORK_TIMEOUT_SECONDS = 5.0
# Room in the process title for `python -m ipykernel_launcher -f PATH`: a title can only be written over the argv of exec.
TITLE_ROOM = 1024
_RUN = str(Path(__file__).with_name("run.py"))


@dataclasses.dataclass(frozen=True)
class ChildExit:
    """How a forked launcher ended: exit code, or the number of the signal that ended it."""

    pid: int
    code: int | None
    signal: int | None


class Zygote:
    """One zygote process and the conversation with it. Make it with `start` or, for an inherited socket, `adopt`."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        process: subprocess.Popen[bytes] | None,
        on_exit: Callable[[ChildExit], None] | None,
        on_death: Callable[[str], None] | None,
    ) -> None:
        self.pid: int = process.pid if process is not None else 0
        self.notices: tuple[str, ...] = ()
        """What did not work but is no failure: modules of `pre_import` that could not be imported."""
        self._process = process
        self._channel = Channel(sock)
        self._on_exit = on_exit
        self._on_death = on_death
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._why_dead: str | None = None
        self._ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name="zygote reader")

    @classmethod
    async def start(
        cls,
        *,
        python: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        pre_import: Sequence[str] = (),
        log_fd: int,
        role: str = "zygote",
        on_exit: Callable[[ChildExit], None] | None = None,
        on_death: Callable[[str], None] | None = None,
        timeout_seconds: float = START_TIMEOUT_SECONDS,
    ) -> Zygote:
        """Exec a zygote in the kernel's interpreter and wait until its imports are done.

        `python`: interpreter and the flags before `-m` (`interpreter_of`). `env`: the zygote's whole environment, that is the
        kernel's base environment; nothing of this process is added. `cwd`: its working directory. `log_fd`: becomes its
        standard output and error. `role`: "zygote" forks kernels, "nursery" forks launchers. `on_exit`: called on the
        event loop for each forked launcher that ended. `on_death`: called once, on the event loop, when the
        zygote is gone without `close`. `timeout_seconds`: for all of it, the imports too.

        Raises ZygoteError: no such interpreter, ipykernel cannot be imported there, a module started a thread, time is up.
        """
        if role not in ("zygote", "nursery"):
            raise ValueError(f"A zygote's role is 'zygote' or 'nursery', not {role!r}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - vfork and exec take a millisecond; asyncio's own would reap for us
                    [*python, _RUN, role, str(theirs.fileno()), " " * TITLE_ROOM],
                    stdin=subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    env=dict(env),
                    cwd=cwd,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                raise ZygoteError(f"The zygote's interpreter {python[0]} could not be started: {_words(error)}") from error
        except ZygoteError:
            ours.close()
            raise
        finally:
            theirs.close()
        zygote = cls(ours, process=process, on_exit=on_exit, on_death=on_death)
        try:
            await zygote._hello(pre_import=pre_import, timeout_seconds=timeout_seconds)
        except BaseException:
            zygote._on_death = None
            await zygote.close()
            raise
        return zygote

    @classmethod
    async def adopt(cls, sock: socket.socket, *, on_death: Callable[[str], None] | None = None) -> Zygote:
        """Speak to a zygote that was forked beside this process (it has imported everything already)."""
        zygote = cls(sock, process=None, on_exit=None, on_death=on_death)
        try:
            await zygote._hello(pre_import=(), timeout_seconds=FORK_TIMEOUT_SECONDS)
        except BaseException:
            zygote._on_death = None
            await zygote.close()
            raise
        return zygote

    @property
    def alive(self) -> bool:
        """False once the zygote cannot be asked any more."""
        return self._why_dead is None

    async def fork_launcher(
        self, *, config: Mapping[str, Any], log_fd: int, timeout_seconds: float = FORK_TIMEOUT_SECONDS
    ) -> int:
        """Fork a launcher with this configuration object; returns its process id (a session and group of its own).

        Returns as soon as the process exists: ask `GET /v1/health` until it serves. `log_fd` becomes its standard output and
        error (the caller keeps its own copy). The nursery's end does not end it.

        Raises ZygoteError.
        """
        answer = await self._ask({"op": "fork_launcher", "config": dict(config)}, [log_fd], timeout_seconds)
        return _pid(answer)

    async def fork_kernel(self, *, control_fd: int, output_fd: int, timeout_seconds: float = FORK_TIMEOUT_SECONDS) -> int:
        """Fork a process that waits for a `boot` message on `control_fd` and becomes a kernel; returns its process id.

        It becomes a child of this process, which must be a child subreaper (`PR_SET_CHILD_SUBREAPER`).

        Raises ZygoteError.
        """
        request = {"op": "fork_kernel", "launcher_pid": os.getpid()}
        return _pid(await self._ask(request, [control_fd, output_fd], timeout_seconds))

    async def close(self, *, timeout_seconds: float = 2.0) -> None:
        """End the zygote and wait until it is gone; what it forked lives on. Idempotent."""
        self._on_death = None
        self._dead("It was closed")
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._channel.close()
        if self._process is None:
            return
        # End of file ends it; an import that hangs does not read.
        if not await self._gone(timeout_seconds / 2):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._gone(timeout_seconds / 2)

    async def _gone(self, within_seconds: float) -> bool:
        assert self._process is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_seconds
        while self._process.poll() is None:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(0.005)
        return True

    async def _hello(self, *, pre_import: Sequence[str], timeout_seconds: float) -> None:
        try:
            await self._channel.send({"op": "hello", "pre_import": list(pre_import)})
            answer = await asyncio.wait_for(self._ready, timeout_seconds)
        except asyncio.TimeoutError as error:
            raise ZygoteError(f"The zygote was not ready within {timeout_seconds:g} s") from error
        except (OSError, FramingError) as error:
            raise ZygoteError(f"The zygote could not be spoken to: {_words(error)}") from error
        self.notices = tuple(str(notice)[:1000] for notice in answer.get("notices", [])[:100])
        self.pid = self.pid or _pid(answer)

    async def _ask(self, request: dict[str, Any], descriptors: Sequence[int], timeout_seconds: float) -> dict[str, Any]:
        if self._why_dead is not None:
            raise ZygoteError(f"The zygote is gone: {self._why_dead}")
        self._next += 1
        number = self._next
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._channel.send({**request, "id": number}, descriptors)
            return await asyncio.wait_for(future, timeout_seconds)
        except asyncio.TimeoutError as error:
            raise ZygoteError(f"The zygote did not answer within {timeout_seconds:g} s") from error
        except (OSError, FramingError) as error:
            raise ZygoteError(f"The zygote could not be spoken to: {_words(error)}") from error
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        why = "It ended"
        try:
            while (message := await self._channel.receive()) is not None:
                self._handle(message)
        except (OSError, FramingError, ZygoteError) as error:
            why = _words(error)
        if self._process is not None:
            await self._gone(0.2)
            code = self._process.returncode
            if code is not None:
                why = f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"
        self._dead(why)

    def _handle(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "exit" and self._on_exit is not None:
            code, signum = message.get("code"), message.get("signal")
            self._on_exit(
                ChildExit(
                    pid=_pid(message),
                    code=code if isinstance(code, int) else None,
                    signal=signum if isinstance(signum, int) else None,
                )
            )
            return
        number = message.get("id")
        future = self._ready if op == "hello" else self._waiting.get(number) if isinstance(number, int) else None
        if future is None or future.done():
            return  # an answer that came after its time limit
        if "error" in message:
            future.set_exception(ZygoteError(str(message["error"])[:2000]))
        else:
            future.set_result(message)

    def _dead(self, why: str) -> None:
        if self._why_dead is not None:
            return
        self._why_dead = why
        for future in (self._ready, *self._waiting.values()):
            if not future.done():
                future.set_exception(ZygoteError(f"The zygote is gone: {why}"))
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # nobody may be waiting for it any more; that is no leak
        if self._on_death is not None:
            on_death, self._on_death = self._on_death, None
            on_death(why)


def interpreter_of(argv: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Split a kernelspec's argv into (interpreter and its flags, arguments of ipykernel), or None if it is not ipykernel.

    `["python3", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", F]` →
    `(["python3", "-Xfrozen_modules=off"], ["-f", F])`.
    """
    index = 1
    while index < len(argv):
        argument = argv[index]
        if argument == "-m":
            if index + 1 < len(argv) and argv[index + 1] in ("ipykernel_launcher", "ipykernel"):
                return list(argv[:index]), list(argv[index + 2 :])
            return None
        if not argument.startswith("-") or argument == "-c":
            return None
        index += 2 if argument in ("-X", "-W") else 1
    return None


def _pid(message: Mapping[str, Any]) -> int:
    pid = message.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        raise ZygoteError("The zygote's answer holds no process id")
    return pid


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
