"""Stock Enterprise Gateway 3.3 on the cluster, with its own launcher and kernelspec: what this project is compared with.

It runs in a pod, because its Kubernetes proxy cannot be imported outside of one. Names and settings are its Helm chart's, with
kernels in the gateway's own namespace. Clients talk to it from the host by the pod's address.
"""

import json
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket

from testcluster.builds import MOVING_TAG, Builds
from testcluster.cluster import Cluster
from testcluster.layout import REGISTRY
from tests.cluster.handle import ClusterUnderTest

IMAGES = Path(__file__).parent / "images"
KERNELSPEC = "python_kubernetes"
_NAME = "enterprise-gateway"
_PORT = 8888


@dataclass(frozen=True)
class Launch:
    """Seconds since the POST was sent."""

    posted: float
    result: float
    text: str


@dataclass(frozen=True)
class StockGateway:
    """A running gateway."""

    address: str

    def launch(self, code: str, *, user: str = "bench") -> Launch:
        """Start a kernel, run one cell over the WebSocket, delete the kernel."""
        began = time.perf_counter()
        body = {
            "name": KERNELSPEC,
            "env": {"KERNEL_IMAGE": _image("stock-kernel-py"), "KERNEL_USERNAME": user, "KERNEL_LAUNCH_TIMEOUT": "60"},
        }
        kernel = self._call("POST", "/api/kernels", body)["id"]
        posted = time.perf_counter() - began
        try:
            text = self._cell(kernel, code)
            return Launch(posted=posted, result=time.perf_counter() - began, text=text)
        finally:
            self._call("DELETE", f"/api/kernels/{kernel}")

    def _cell(self, kernel: str, code: str) -> str:
        url = f"ws://{self.address}/api/kernels/{kernel}/channels"
        channels = websocket.create_connection(url, timeout=60)
        try:
            request = _execute(code)
            channels.send(json.dumps(request))
            while True:
                message = json.loads(channels.recv())
                if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                    continue
                if message["msg_type"] == "stream":
                    return str(message["content"]["text"])
                if message["msg_type"] == "error":
                    raise RuntimeError(message["content"]["evalue"])
        finally:
            channels.close()

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=90) as answer:
            content = answer.read()
        return json.loads(content) if content else None


@contextmanager
def gateway(cluster: ClusterUnderTest, *, namespace: str) -> Iterator[StockGateway]:
    """A gateway in this namespace, ready; gone again afterwards, with its account and role."""
    objects = _objects(namespace)
    cluster.apply(*objects, namespace=namespace)
    try:
        cluster.wait(f"pod/{_NAME}", "Ready", namespace=namespace, timeout=90)
        pod = cluster.get(f"pod/{_NAME}", namespace=namespace)
        yield StockGateway(address=f"{pod['status']['podIP']}:{_PORT}")
    finally:
        for found in reversed(objects):
            cluster.delete(f"{found['kind'].lower()}/{_NAME}", "--ignore-not-found", namespace=namespace)


def load_images(own: Cluster) -> None:
    """Build both images, if they are not there, and load them into the cluster."""
    own.load_built(builds=Builds(own.layout, own.base, folder=IMAGES))


def _objects(namespace: str) -> list[dict[str, Any]]:
    labels = {"app": _NAME, "component": _NAME}
    settings = {
        "EG_PORT": str(_PORT),
        "EG_NAMESPACE": namespace,
        "EG_SHARED_NAMESPACE": "True",
        "EG_LIST_KERNELS": "True",
        "EG_LOG_LEVEL": "INFO",
        "EG_KERNEL_LAUNCH_TIMEOUT": "60",
        "EG_DEFAULT_KERNEL_NAME": KERNELSPEC,
        "EG_DEFAULT_KERNEL_SERVICE_ACCOUNT_NAME": "default",
    }
    container = {
        "name": _NAME,
        "image": _image("stock-gateway"),
        "env": [{"name": name, "value": value} for name, value in settings.items()],
        "ports": [{"containerPort": _PORT}],
        "readinessProbe": {"httpGet": {"path": "/api", "port": _PORT}, "periodSeconds": 1},
    }
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]},
        {"apiGroups": [""], "resources": ["namespaces", "services", "configmaps", "secrets"], "verbs": ["get", "list"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": _NAME}
    subject = {"kind": "ServiceAccount", "name": _NAME, "namespace": namespace}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": _NAME}}
    spec = {"serviceAccountName": _NAME, "terminationGracePeriodSeconds": 5, "containers": [container]}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": _NAME}},
        {**rbac, "kind": "Role", "rules": rules},
        {**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [subject]},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": _NAME, "labels": labels}, "spec": spec},
    ]


def _image(name: str) -> str:
    return f"{REGISTRY}/eg-knative/{name}:{MOVING_TAG}"


def _execute(code: str) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "username": "bench",
        "session": uuid.uuid4().hex,
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
