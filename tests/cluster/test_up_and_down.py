"""`up` and `down` at their worst: many times in a row, and killed in the middle of each phase.

These take the machine's cluster down. They are `soak`: pytest tests/cluster -m soak.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testcluster import host_state
from testcluster.cluster import Cluster
from testcluster.layout import REPOSITORY, Layout
from testcluster.processes import marked
from testcluster.progress import Progress

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]

TIMES = int(os.environ.get("EG_KNATIVE_SOAK_TIMES", "20"))
PHASES = (
    "keys",
    "node",
    "control plane",
    "images",
    "api server",
    "kubelet",
    "node ready",
    "knative",
    "knative available",
)


@pytest.fixture
def down() -> Iterator[Cluster]:
    """A cluster that is down before the test and after it."""
    layout = Layout.default()
    tool = Cluster(layout, Progress(times=layout.cache / "times.json"))
    tool.down()
    yield tool
    tool.down()


def _up(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-B", "-m", "testcluster", "up", "--no-images", *words]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def _works(tool: Cluster) -> None:
    with _up() as up:
        assert up.stderr is not None
        said = up.stderr.read()
    assert up.returncode == 0, said
    assert tool.running
    tool.kubectl("get", "nodes,ksvc", "--all-namespaces")


def _traces(tool: Cluster) -> dict[str, object]:
    """Everything that a cluster may leave on the machine."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "eg-knative" in line]
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    settings = {name: (Path("/proc/sys") / name).read_text() for name in host_state.SETTINGS}
    return {
        "processes": marked(tool.layout),
        "mounts": mounts,
        "link": host_state.linked(),
        "network namespaces": namespaces,
        "control groups": host_state.cgroups(),
        "iptables rules": [line for line in rules.splitlines() if line.startswith("-A")],
        "kernel settings": settings,
        "state": tool.layout.state.exists(),
    }


def test_up_and_down_many_times_in_a_row(down: Cluster) -> None:
    clean = _traces(down)
    for number in range(TIMES):
        began = time.monotonic()
        _works(down)
        up = time.monotonic() - began
        began = time.monotonic()
        down.down()
        took = time.monotonic() - began
        print(f"{number + 1}: up {up:.1f} s, down {took:.1f} s", flush=True)
        assert took < 10
        assert _traces(down) == clean


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("delay", [0.0, 0.3, 1.5])
def test_up_after_an_up_that_was_killed(down: Cluster, phase: str, delay: float) -> None:
    clean = _traces(down)
    with _up("--verbose") as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if line.strip() == f"phase {phase}":
                time.sleep(delay)
                break
        killed.send_signal(signal.SIGKILL)
        killed.stderr.read()
    _works(down)
    down.down()
    assert _traces(down) == clean


@pytest.mark.parametrize("phase", PHASES)
def test_down_after_an_up_that_was_killed(down: Cluster, phase: str) -> None:
    clean = _traces(down)
    with _up("--verbose") as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if line.strip() == f"phase {phase}":
                break
        killed.send_signal(signal.SIGKILL)
        killed.stderr.read()
    began = time.monotonic()
    down.down()
    assert time.monotonic() - began < 10
    assert _traces(down) == clean


@pytest.mark.parametrize(
    ("step", "delay", "missing"),
    [
        ("compile kube-scheduler", 0.5, "bin/*/kube-scheduler"),
        ("bootstrap the base image", 8.0, "base/*"),
        ("build image gateway", 4.0, "buildah/built/gateway-*"),
    ],
)
def test_up_after_an_up_that_was_killed_while_it_built(
    down: Cluster, tmp_path: Path, step: str, delay: float, missing: str
) -> None:
    """In a cache of its own, where only what is killed is missing; image builds, the slowest, are left out of the others."""
    cache = Layout(cache=tmp_path / "eg-knative" / "cluster").cache
    for part in ("bin", "base", "buildah/built"):
        shutil.copytree(down.layout.cache / part, cache / part)
    for path in cache.glob(missing):
        path.unlink()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-B", "-m", "testcluster", "up", "--prepare-only"]
    options: dict[str, Any] = {"cwd": REPOSITORY, "env": environment, "text": True}
    clean = _traces(down)
    with subprocess.Popen(command, stderr=subprocess.PIPE, **options) as killed:
        assert killed.stderr is not None
        for line in killed.stderr:
            if line.partition("] ")[2].partition(" (")[0].strip() == step:
                time.sleep(delay)
                break
        killed.send_signal(signal.SIGKILL)
        killed.stderr.read()
    assert _traces(down) == clean
    done = subprocess.run(command, capture_output=True, **options)
    assert done.returncode == 0, done.stderr
    assert f"] {step}" in done.stderr
    assert _traces(down) == clean
    assert not list(cache.glob("base/root-*"))


def test_up_after_every_process_of_a_running_cluster_was_killed(down: Cluster) -> None:
    """As after the kernel's out-of-memory killer, or a machine that was reset with its disk kept."""
    _works(down)
    for process in marked(down.layout):
        process.kill(signal.SIGKILL)
    _works(down)


def test_up_after_a_daemon_died(down: Cluster) -> None:
    _works(down)
    down.node.stop("kubelet")
    assert not down.running
    _works(down)
