"""What the namespace fixture promises: forgotten objects are found, and a failed test's events and logs are kept."""

from pathlib import Path

from tests.cluster import leftovers, manifests
from tests.cluster.handle import ClusterUnderTest


def test_a_fresh_namespace_has_nothing_of_a_tests(cluster: ClusterUnderTest, namespace: str) -> None:
    assert leftovers.find(cluster.kubectl, namespace) == []


def test_a_forgotten_object_is_found_by_its_name(cluster: ClusterUnderTest, namespace: str) -> None:
    cluster.kubectl("create", "configmap", "forgotten", f"--namespace={namespace}")
    assert leftovers.wait_for_none(cluster.kubectl, namespace, timeout=0.1) == ["configmap/forgotten"]
    cluster.delete("configmap/forgotten", namespace=namespace)
    assert leftovers.wait_for_none(cluster.kubectl, namespace, timeout=10) == []


def test_events_and_logs_of_a_namespace_are_kept(
    cluster: ClusterUnderTest, namespace: str, kernel_image: str, tmp_path: Path
) -> None:
    cluster.apply(manifests.pod("main", image=kernel_image), namespace=namespace)
    cluster.wait("pod/main", "Ready", namespace=namespace)
    leftovers.keep(cluster.kubectl, namespace, tmp_path)
    cluster.delete("pod/main", namespace=namespace)
    assert "Started" in (tmp_path / "events.txt").read_text()
    assert (tmp_path / "main.main.log").read_text().startswith("serving")
    assert "kind: Pod" in (tmp_path / "objects.yaml").read_text()
