"""Every fault lever does what it says, and undoes it."""

import socket
import urllib.request

import pytest

from testcluster.cluster import Cluster
from testcluster.errors import CommandError
from tests.cluster import levers, manifests
from tests.cluster.handle import ClusterUnderTest, eventually

_PODS = ("get", "pods", "--namespace=default", "--request-timeout=2s")


@pytest.fixture
def pod(cluster: ClusterUnderTest, namespace: str, kernel_image: str):
    cluster.apply(manifests.pod("main", image=kernel_image), namespace=namespace)
    cluster.wait("pod/main", "Ready", namespace=namespace)
    yield cluster.get("pod/main", namespace=namespace)
    cluster.delete("pod/main", namespace=namespace)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}:8080/", timeout=1.5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.parametrize("grace", [0.0, 10.0])
def test_without_the_api_server_pods_run_on(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, pod, grace: float
) -> None:
    with levers.without_api_server(own_cluster, grace=grace):
        with pytest.raises(CommandError):
            cluster.kubectl(*_PODS)
        assert _answers(pod["status"]["podIP"])
    cluster.kubectl(*_PODS)


def test_without_the_kubelet_a_new_pod_does_not_start(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, pod, kernel_image: str
) -> None:
    with levers.without_kubelet(own_cluster):
        cluster.apply(manifests.pod("late", image=kernel_image), namespace=namespace)
        with pytest.raises(CommandError):
            cluster.kubectl("wait", "pod/late", f"--namespace={namespace}", "--for=condition=Ready", "--timeout=3s")
        assert _answers(pod["status"]["podIP"])
    cluster.wait("pod/late", "Ready", namespace=namespace)
    cluster.delete("pod/late", namespace=namespace)


@pytest.mark.parametrize("component", ["autoscaler", "activator", "controller"])
def test_a_knative_component_goes_and_comes_back(knative: ClusterUnderTest, component: str) -> None:
    selector = f"--selector=app={component}"
    with levers.without_knative(knative, component):
        eventually(
            lambda: not knative.get("pods", selector, namespace="knative-serving")["items"],
            within=10,
            what=f"{component} gone",
        )
    before = knative.get("pods", selector, namespace="knative-serving")["items"]
    assert len(before) == 1
    levers.kill_knative(knative, component)
    knative.wait(f"deployment/{component}", "Available", namespace="knative-serving")
    after = knative.get("pods", selector, namespace="knative-serving")["items"]
    assert before[0]["metadata"]["uid"] not in [found["metadata"]["uid"] for found in after]


def test_an_unreachable_pod_is_silent_but_stays_ready(
    own_cluster: Cluster, cluster: ClusterUnderTest, namespace: str, pod
) -> None:
    address = pod["status"]["podIP"]
    assert _answers(address)
    with levers.unreachable(own_cluster, namespace=namespace, pod="main"):
        with pytest.raises(TimeoutError), socket.create_connection((address, 8080), timeout=1.5):
            pass
        with pytest.raises(CommandError):
            cluster.kubectl("wait", "pod/main", f"--namespace={namespace}", "--for=condition=Ready=false", "--timeout=3s")
    assert _answers(address)


def test_a_full_quota_refuses_one_more_pod(cluster: ClusterUnderTest, namespace: str, pod, kernel_image: str) -> None:
    one_more = manifests.pod("more", image=kernel_image)
    with levers.quota_full(cluster, namespace=namespace), pytest.raises(CommandError, match="exceeded quota"):
        cluster.apply(one_more, namespace=namespace)
    cluster.apply(one_more, namespace=namespace)
    cluster.delete("pod/more", namespace=namespace)


def test_a_cordoned_node_leaves_new_pods_pending(cluster: ClusterUnderTest, namespace: str, kernel_image: str) -> None:
    with levers.cordoned(cluster):
        cluster.apply(manifests.pod("main", image=kernel_image), namespace=namespace)
        condition = "--for=jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable"
        cluster.kubectl.wait("the refusal", condition, "pod/main", f"--namespace={namespace}", timeout=10)
    cluster.wait("pod/main", "Ready", namespace=namespace)
    cluster.delete("pod/main", namespace=namespace)
