"""Faults to inject, each undone when its block ends: `with levers.without_api_server(cluster): …`.

Those that stop a daemon of the node, or touch its network, need the project's own cluster; the others work on any.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from testcluster import control_plane
from testcluster.cluster import Cluster
from testcluster.errors import ClusterError, NotReadyError
from testcluster.layout import NODE_NAME, POD_GATEWAY
from testcluster.processes import until
from testcluster.worker import CTR
from tests.cluster.handle import ClusterUnderTest

_KNATIVE = "knative-serving"


@contextmanager
def without_api_server(own: Cluster, *, grace: float = 0.0) -> Iterator[None]:
    """No API server. With `grace` it ends in order and tells its watchers, without it they see a broken connection."""
    own.node.stop("kube-apiserver", grace=grace)
    try:
        yield
    finally:
        own.node.restart("kube-apiserver")
        control_plane.wait_until_ready(own.node, timeout=60)


@contextmanager
def without_kubelet(own: Cluster) -> Iterator[None]:
    """No kubelet: pods run on, but nobody starts, probes, resizes or removes any."""
    own.node.stop("kubelet")
    try:
        yield
    finally:
        own.node.restart("kubelet")
        own.kubectl.wait("the node", "--for=condition=Ready", f"node/{NODE_NAME}", timeout=60)


@contextmanager
def without_knative(cluster: ClusterUnderTest, component: str) -> Iterator[None]:
    """No `autoscaler`, `activator`, `controller` or `webhook`: scaled away and killed, not asked to drain."""
    deployment = cluster.get("deployment", component, namespace=_KNATIVE)
    _scale(cluster, component, 0)
    kill_knative(cluster, component)
    try:
        yield
    finally:
        _scale(cluster, component, deployment["spec"]["replicas"])
        cluster.wait(f"deployment/{component}", "Available", namespace=_KNATIVE)


def kill_knative(cluster: ClusterUnderTest, component: str) -> None:
    """Kill a Knative component's pods; its Deployment starts new ones, unless it is scaled away."""
    cluster.kubectl("delete", "pods", f"--selector=app={component}", f"--namespace={_KNATIVE}", "--force", "--grace-period=0")


@contextmanager
def unreachable(own: Cluster, *, namespace: str, pod: str) -> Iterator[None]:
    """Drop a pod's traffic to and from everybody but its node, silently: no reset, no refusal, and probes still pass."""
    pid = _pid_in_node(own, namespace=namespace, pod=pod)
    rules = (
        ["INPUT", "!", "-i", "lo", "!", "--source", POD_GATEWAY, "--jump", "DROP"],
        ["OUTPUT", "!", "-o", "lo", "!", "--destination", POD_GATEWAY, "--jump", "DROP"],
    )

    def change(action: str) -> None:
        for rule in rules:
            own.node.run(["nsenter", f"--target={pid}", "--net", "iptables", "--wait", action, *rule])

    change("-I")
    try:
        yield
    finally:
        try:
            change("-D")
        except ClusterError:
            # The pod may be gone by now, and its network with it.
            if _alive(own, pid):
                raise


@contextmanager
def quota_full(cluster: ClusterUnderTest, *, namespace: str, resources: tuple[str, ...] = ("pods",)) -> Iterator[None]:
    """A quota that what is there fills to the brim: nothing more of these resources can be created."""
    name = "lever-full"
    _quota(cluster, name, namespace, dict.fromkeys(resources, "1M"))
    used: dict[str, str] = {}

    def counted() -> bool:
        status: dict[str, Any] = cluster.get("resourcequota", name, namespace=namespace).get("status", {})
        used.update(status.get("used", {}))
        return set(resources) <= set(used)

    try:
        if not until(counted, timeout=20, every=0.1):
            raise NotReadyError(f"nobody counted {', '.join(resources)} for the quota: is the controller manager running?")
        _quota(cluster, name, namespace, used)
        yield
    finally:
        cluster.delete("resourcequota", name, namespace=namespace)


@contextmanager
def cordoned(cluster: ClusterUnderTest) -> Iterator[None]:
    """No node takes new pods; those that run stay."""
    listed = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    nodes = [node["metadata"]["name"] for node in listed if not node["spec"].get("unschedulable")]
    cluster.kubectl("cordon", *nodes)
    try:
        yield
    finally:
        cluster.kubectl("uncordon", *nodes)


def _scale(cluster: ClusterUnderTest, component: str, replicas: int) -> None:
    cluster.kubectl("scale", f"deployment/{component}", f"--replicas={replicas}", f"--namespace={_KNATIVE}")


def _quota(cluster: ClusterUnderTest, name: str, namespace: str, hard: dict[str, str]) -> None:
    body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": {"hard": hard}}
    cluster.kubectl("apply", f"--namespace={namespace}", "--filename=-", stdin=json.dumps(body))


def _pid_in_node(own: Cluster, *, namespace: str, pod: str) -> int:
    """A process of the pod, numbered as the node numbers it."""
    labels = f'labels."io.kubernetes.pod.namespace"=={namespace},labels."io.kubernetes.pod.name"=={pod}'
    wanted = set(own.node.run([*CTR, "containers", "ls", "--quiet", labels]).split())
    for line in own.node.run([*CTR, "tasks", "ls"]).splitlines()[1:]:
        container, pid, *_ = line.split()
        if container in wanted:
            return int(pid)
    raise NotReadyError(f"pod {pod} in {namespace} has no running container")


def _alive(own: Cluster, pid: int) -> bool:
    try:
        own.node.run(["kill", "-0", str(pid)])
    except ClusterError:
        return False
    return True
