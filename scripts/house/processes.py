"""The two servers that scripts/run starts, and how they are ended.

Each runs in a session of its own, so that a Ctrl-C on the terminal reaches only scripts/run, which then ends them in their
order. When scripts/run itself is killed outright, the operating system sends them SIGTERM (Linux only): JupyterLab stops, and the
gateway detaches, so that the next one finds the kernels again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1


class ServerError(Exception):
    """A server did not start, or ended by itself; the message is for the user."""


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """One child process with a log file. `stop_signal` asks it to end and to clean up behind itself."""

    def __init__(
        self, *, title: str, command: Sequence[str | Path], env: Mapping[str, str], directory: Path, log: Path, stop_signal: int
    ) -> None:
        self.title = title
        self.log = log
        self._command = list(map(str, command))
        self._env = dict(env)
        self._directory = directory
        self._stop_signal = stop_signal
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        self.start()

    def start(self) -> None:
        """Start it, again if it ended. The log goes on; it is private because a server's log may show addresses with tokens."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as out:
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                self._command,
                env=self._env,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, *, url: str, token: str, timeout: float) -> None:
        """Ask `url` until it answers 200. Raises ServerError when the server ends first or the time is up."""
        deadline = time.monotonic() + timeout
        request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            if not self.alive():
                raise ServerError(
                    f"{self.title} ended with exit code {self.process.returncode} before it was ready.{self.last_words()}"
                )
            with contextlib.suppress(urllib.error.URLError, OSError), opener.open(request, timeout=5):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"{self.title} was not ready within {timeout:.0f} s.{self.last_words()}")
            time.sleep(0.05)

    def last_words(self) -> str:
        """The end of the log, and where the rest is."""
        lines = self.log.read_text(errors="replace").strip().splitlines()[-6:]
        return "".join(f"\n    {line}" for line in lines) + f"\n  The whole log: {self.log}"

    def stop(self, *, grace_seconds: float) -> bool:
        """Ask, wait, then end the process group outright. True when it ended in time."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(self._stop_signal)
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return False
        return True


def _die_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask_kernel() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask_kernel
