"""KUBECONFIG may name any cluster: the tests then stay in namespaces of their own, and skip with a reason what it lacks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from testcluster.cluster import Cluster
from testcluster.layout import REPOSITORY


def test_another_kubeconfig_is_used_and_what_is_not_ours_is_skipped(own_cluster: Cluster, tmp_path: Path) -> None:
    """Our cluster by another name is a stranger's."""
    named = tmp_path / "config"
    shutil.copyfile(own_cluster.layout.kubeconfig, named)
    before = own_cluster.node.first()
    folder = own_cluster.binaries.path("kubectl").parent
    environment = {**os.environ, "KUBECONFIG": str(named), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("EG_KNATIVE_KERNEL_IMAGE", None)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cluster/test_kubernetes.py"]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout
    assert re.search(r"2 passed, \d+ skipped", done.stdout), done.stdout
    assert "the daemons of a cluster of your own are not ours to touch" in done.stdout
    assert "EG_KNATIVE_KERNEL_IMAGE does not say" in done.stdout
    assert own_cluster.node.first() == before
