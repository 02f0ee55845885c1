"""Upstream Knative Serving works on this cluster: a Service answers, scales to zero, and wakes."""

import time
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from testcluster.cluster import Cluster
from tests.cluster import manifests
from tests.cluster.handle import ClusterUnderTest, eventually

pytestmark = pytest.mark.timeout(240)
_POD = "--selector=serving.knative.dev/service=kernel"


@pytest.fixture
def service(knative: ClusterUnderTest, namespace: str, kernel_image: str):
    knative.apply(manifests.service("kernel", image=kernel_image), namespace=namespace)
    knative.wait("ksvc/kernel", "Ready", namespace=namespace)
    yield "kernel"
    knative.delete("ksvc/kernel", namespace=namespace)
    # Its pod would drain for half a minute: nobody waits for an answer of it any more. Not before what would replace it is gone.
    eventually(lambda: not knative.get("replicasets", _POD, namespace=namespace)["items"], within=20, what="clean-up")
    knative.delete("pods", _POD, "--force", "--grace-period=0", namespace=namespace)


def _running(knative: ClusterUnderTest, namespace: str) -> list[dict]:
    pods = knative.get("pods", _POD, namespace=namespace)["items"]
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _ask(address: str, *, host: str = "", timeout: float = 30) -> str:
    request = urllib.request.Request(f"http://{address}/", headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read().decode()


def test_a_service_scales_to_zero_and_a_request_wakes_it(
    own_cluster: Cluster, knative: ClusterUnderTest, namespace: str, service: str, figure: Callable[[str], None]
) -> None:
    first = _running(knative, namespace)[0]["metadata"]["name"]
    ingress = knative.get("service/kourier-internal", namespace="kourier-system")["spec"]["clusterIP"]
    host = f"{service}.{namespace}.svc.cluster.local"
    assert _ask(ingress, host=host) == first

    eventually(lambda: not _running(knative, namespace), within=120, what="scale to zero")

    began = time.monotonic()
    woken = _ask(ingress, host=host)
    took = time.monotonic() - began
    figure(f"Knative Service, wake from zero through Kourier: {took:.2f} s")
    assert woken != first
    assert took < 15


def test_the_queue_proxy_of_a_pod_answers_the_host_directly(
    own_cluster: Cluster, knative: ClusterUnderTest, namespace: str, service: str
) -> None:
    pod = _running(knative, namespace)[0]
    assert _ask(f"{pod['status']['podIP']}:8012") == pod["metadata"]["name"]


def test_a_name_that_no_service_has_is_not_found(own_cluster: Cluster, knative: ClusterUnderTest) -> None:
    ingress = knative.get("service/kourier-internal", namespace="kourier-system")["spec"]["clusterIP"]
    with pytest.raises(urllib.error.HTTPError) as answer:
        _ask(ingress, host="nobody.nowhere.svc.cluster.local")
    assert answer.value.code == 404
    answer.value.close()
