"""The cluster is a real Kubernetes: what the gateway and its tests rely on works."""

import json
import urllib.request

import pytest

from testcluster.cluster import Cluster
from testcluster.errors import CommandError
from testcluster.images import Store
from testcluster.layout import DNS_ADDRESS
from tests.cluster import manifests
from tests.cluster.handle import ClusterUnderTest, eventually


@pytest.fixture
def pod(cluster: ClusterUnderTest, namespace: str, kernel_image: str):
    cluster.apply(manifests.pod("main", image=kernel_image), namespace=namespace)
    cluster.wait("pod/main", "Ready", namespace=namespace)
    yield cluster.get("pod/main", namespace=namespace)
    cluster.delete("pod/main", namespace=namespace)


def test_every_node_is_ready(cluster: ClusterUnderTest) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=10s")


def test_exec_and_logs_reach_a_pod(cluster: ClusterUnderTest, namespace: str, pod) -> None:
    said = cluster.kubectl("exec", "main", f"--namespace={namespace}", "--", "python", "-c", "print(6 * 7)")
    assert said.strip() == "42"
    assert cluster.kubectl("logs", "main", f"--namespace={namespace}").startswith("serving")


def test_a_process_on_the_host_reaches_the_pods_address(own_cluster: Cluster, pod) -> None:
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/", timeout=5) as answer:
        assert answer.read() == b"main"


def test_a_running_pods_memory_is_resized_in_its_control_group(cluster: ClusterUnderTest, namespace: str, pod) -> None:
    if not cluster.resize:
        pytest.skip("this cluster cannot resize pods in place (Kubernetes 1.33 and newer can)")
    started = pod["status"]["containerStatuses"][0]["containerID"]
    for limit, size in (("256Mi", 256 << 20), ("192Mi", 192 << 20)):
        patch = {"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": limit}}}]}}
        words = ("--subresource=resize", "--type=strategic", f"--patch={json.dumps(patch)}")
        cluster.kubectl("patch", "pod", "main", f"--namespace={namespace}", *words)
        files = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
        read = ("exec", "main", f"--namespace={namespace}", "--", "sh", "-c", f"cat {files} 2>/dev/null || true")
        eventually(lambda: cluster.kubectl(*read).strip() == str(size), within=10, what=f"a limit of {limit}")  # noqa: B023
    now = cluster.get("pod/main", namespace=namespace)["status"]["containerStatuses"][0]
    assert (now["containerID"], now["restartCount"]) == (started, 0)


def test_a_pod_resolves_services_and_fails_on_other_names_at_once(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, pod
) -> None:
    program = (
        "import socket, time\n"
        "print(socket.gethostbyname('kube-dns.kube-system'))\n"
        "began = time.monotonic()\n"
        "try: socket.gethostbyname('registry.invalid')\n"
        "except socket.gaierror: print(time.monotonic() - began < 2)\n"
    )
    said = cluster.kubectl("exec", "main", f"--namespace={namespace}", "--", "python", "-c", program)
    assert said.split() == [DNS_ADDRESS, "True"]


def test_pod_security_is_enforced(cluster: ClusterUnderTest, namespace: str) -> None:
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    loose = manifests.pod("loose", image="dev.local/none:dev")
    del loose["spec"]["containers"][0]["securityContext"]
    with pytest.raises(CommandError, match="violates PodSecurity"):
        cluster.apply(loose, namespace=namespace)


def test_a_pod_may_name_its_image_by_digest(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, kernel_image: str
) -> None:
    digest = Store(own_cluster.node).digest(kernel_image)
    cluster.apply(manifests.pod("main", image=f"{kernel_image.rpartition(':')[0]}@{digest}"), namespace=namespace)
    cluster.wait("pod/main", "Ready", namespace=namespace, timeout=20)
    cluster.delete("pod/main", namespace=namespace)


def test_the_kernel_image_runs_as_a_user_with_the_launcher_and_warm_bytecode(
    cluster: ClusterUnderTest, namespace: str, pod
) -> None:
    program = (
        "import os, eg_launcher, ipykernel, json, numpy\n"
        "print(os.getuid() != 0, all(os.path.exists(m.__cached__) for m in (eg_launcher, ipykernel, json, numpy)))\n"
    )
    said = cluster.kubectl("exec", "main", f"--namespace={namespace}", "--", "python", "-c", program)
    assert said.split() == ["True", "True"]
