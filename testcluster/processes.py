"""The node: one process with its own network, mounts and process ids, and the daemons started inside it.

The first process of a process namespace takes all others with it when it is killed, the last one takes the mounts and
the network. So a crash at any moment leaves nothing that killing one pid does not end. Daemons are recorded with their
command line, so that a lever can stop and start one; a recorded pid counts only together with its start time.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from testcluster import shell
from testcluster.errors import NotReadyError, NotRunningError
from testcluster.layout import MARKER, Layout

# SIGCHLD ignored survives exec: the kernel reaps what the containers' shims leave to the first process.
_FIRST = "trap '' CHLD; exec sleep infinity"
# What we started stays ours until we end: Python warns about a child that is forgotten while it runs.
_children: list["subprocess.Popen[bytes]"] = []


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with its number."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        return _started(self.pid) == self.started

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone is fine."""
        if self.alive:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return


@dataclass(frozen=True)
class Node:
    """The namespaces and daemons of the running cluster."""

    layout: Layout

    # --- the namespaces

    def create(self) -> None:
        """Make the node's first process."""
        self._records.mkdir(parents=True, exist_ok=True)
        words = ["unshare", "--net", "--mount", "--pid", "--fork", "--propagation", "private", "--mount-proc"]
        outer = self._spawn([*words, "sh", "-c", _FIRST], log=self.layout.logs / "node.log")
        self._record("node", _only_child(outer), [])

    def first(self) -> Process:
        """The node's first process; raise if there is none."""
        process = self._read("node")
        if process is None or not process.alive:
            raise NotRunningError("the test cluster is not running: start it with `scripts/cluster up`")
        return process

    def run(self, argv: Sequence[str | Path], *, stdin: str | bytes | None = None, timeout: float = 60) -> str:
        """Run a program inside the node to its end."""
        name = " ".join(str(word) for word in argv[:3])
        environment = shell.clean_environment()  # no marker: it is ours to wait for, not the teardown's to find
        return shell.run([*self._enter(), *argv], env=environment, stdin=stdin, timeout=timeout, name=name)

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.first().pid}", "--net", "--mount", "--pid", "--"]

    # --- daemons

    def start(self, name: str, argv: Sequence[str | Path]) -> None:
        """Start a daemon inside the node."""
        words = [str(word) for word in argv]
        outer = self._spawn([*self._enter(), *words], log=self.layout.logs / f"{name}.log")
        self._record(name, _only_child(outer), words)

    def restart(self, name: str) -> None:
        """Start a daemon that was stopped, as it was started before."""
        if self.running(name):
            return
        self.start(name, self._argv(name))

    def stop(self, name: str, *, grace: float = 5.0) -> None:
        """End a daemon: SIGTERM, and SIGKILL when `grace` is over; without grace SIGKILL at once."""
        process = self._read(name)
        if process is None:
            raise NotRunningError(f"the test cluster has no daemon {name}: it has {', '.join(self.daemons())}")
        process.kill(signal.SIGTERM if grace > 0 else signal.SIGKILL)
        if not until(lambda: not process.alive, timeout=grace):
            process.kill(signal.SIGKILL)
            until(lambda: not process.alive, timeout=5.0)

    def running(self, name: str) -> bool:
        """Whether a daemon runs."""
        process = self._read(name)
        return process is not None and process.alive

    def daemons(self) -> tuple[str, ...]:
        """Names of all daemons that were started, the first process aside."""
        return tuple(sorted(path.stem for path in self._records.glob("*.json") if path.stem != "node"))

    def wait(self, what: str, ready: Callable[[], bool], *, daemon: str, timeout: float) -> None:
        """Wait until something is ready; give up at once when its daemon has died."""
        alive = True

        def settled() -> bool:
            nonlocal alive
            alive = self.running(daemon)
            return not alive or ready()

        if not until(settled, timeout=timeout):
            raise NotReadyError(f"{what} was not ready within {timeout:.0f} s: see `scripts/cluster logs {daemon}`")
        if not alive:
            log = self.layout.logs / f"{daemon}.log"
            raise NotReadyError(f"{daemon} died: {shell.tail(log.read_bytes()[-4000:])}")

    # --- records

    @property
    def _records(self) -> Path:
        return self.layout.state / "daemons"

    def _spawn(self, words: Sequence[str], *, log: Path) -> "subprocess.Popen[bytes]":
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = shell.clean_environment(**{MARKER: str(self.layout.state)})
        with log.open("ab") as sink:
            child = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _children.append(child)
        return child

    def _record(self, name: str, process: Process, argv: list[str]) -> None:
        path = self._records / f"{name}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({**asdict(process), "argv": argv}))
        fresh.replace(path)

    def _read(self, name: str) -> Process | None:
        try:
            body = json.loads((self._records / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return Process(pid=body["pid"], started=body["started"])

    def _argv(self, name: str) -> list[str]:
        body = json.loads((self._records / f"{name}.json").read_text())
        return [str(word) for word in body["argv"]]


def marked(layout: Layout) -> list[Process]:
    """Every process on this machine that was started for this cluster, recorded or not."""
    wanted = f"{MARKER}={layout.state}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # it ended meanwhile, or belongs to the kernel
        started = _started(int(folder.name))
        if wanted in environment.split(b"\0") and started is not None:
            found.append(Process(pid=int(folder.name), started=started))
    return found


def until(ready: Callable[[], bool], *, timeout: float, every: float = 0.05) -> bool:
    """Ask until the answer is yes or time is over."""
    end = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def _only_child(outer: "subprocess.Popen[bytes]") -> Process:
    """The process that unshare or nsenter forked into the namespace: the daemon itself, seen from the host."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    pids: list[str] = []

    def forked() -> bool:
        pids[:] = children.read_text().split() if children.exists() else []
        return bool(pids) or outer.poll() is not None

    until(forked, timeout=5.0, every=0.005)
    started = _started(int(pids[0])) if pids else None
    if started is None:
        raise NotReadyError(f"could not start inside the node: {outer.args!r} ended with {outer.poll()}")
    return Process(pid=int(pids[0]), started=started)


def _started(pid: int) -> int | None:
    """When a process started, in the kernel's ticks; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
