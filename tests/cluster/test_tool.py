"""scripts/cluster itself, on the cluster that runs: what a second `up` does, what a person reads, what is refused."""

import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from testcluster import archives, lock
from testcluster.cluster import Cluster
from testcluster.images import Store
from testcluster.layout import REPOSITORY


def _tool(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(REPOSITORY / "scripts" / "cluster"), *words],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_a_second_up_is_quick_and_changes_nothing(own_cluster: Cluster) -> None:
    before = own_cluster.node.first()
    began = time.monotonic()
    done = _tool("up")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 10
    assert own_cluster.node.first() == before


def test_status_tells_what_runs_and_what_is_wrong(own_cluster: Cluster) -> None:
    well = _tool("status")
    assert well.returncode == 0, well.stdout
    assert "kubelet                   runs" in well.stdout
    own_cluster.node.stop("kube-scheduler")
    try:
        ill = _tool("status")
        assert ill.returncode == 1
        assert "wrong: kube-scheduler does not run: see `scripts/cluster logs kube-scheduler`" in ill.stdout
    finally:
        own_cluster.node.restart("kube-scheduler")


def test_two_changes_at_once_do_not_collide(own_cluster: Cluster) -> None:
    with lock.held(own_cluster.layout.lock, doing="up"):
        for command in ("up", "down", "load-image"):
            done = _tool(command)
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert f"is being changed by `scripts/cluster up` with pid {os.getpid()}" in done.stderr
    assert own_cluster.running


def test_kubeconfig_and_logs_are_printed(own_cluster: Cluster) -> None:
    assert _tool("kubeconfig").stdout.strip() == str(own_cluster.layout.kubeconfig)
    assert "kubelet" in _tool("logs").stdout.split()
    log = own_cluster.layout.logs / "kube-apiserver.log"
    assert _tool("logs", "kube-apiserver").stdout.startswith(log.read_text()[:1000])
    unknown = _tool("logs", "nobody")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)


def test_an_image_archive_is_loaded(own_cluster: Cluster, tmp_path: Path) -> None:
    reference = "dev.local/eg-knative/loaded:test"

    def fill(layer: tarfile.TarFile) -> None:
        archives.add_bytes(layer, "hello", b"world")

    archive = tmp_path / "image.tar"
    archives.write_layer(archive, reference=reference, config=archives.ImageConfig(), fill=fill)
    done = _tool("load-image", str(archive))
    assert done.returncode == 0, done.stderr
    assert reference in Store(own_cluster.node).references()
    Store(own_cluster.node).remove(reference)


def test_idle_memory_stays_below_a_gigabyte_and_a_half(own_cluster: Cluster, figure: Callable[[str], None]) -> None:
    line = next(line for line in _tool("status").stdout.splitlines() if line.startswith("memory"))
    figure(line)
    assert int(line.split()[-2]) < 1536
