"""The objects that these tests create: small pods and Services that run the kernel image with something else to do."""

from typing import Any

SERVER = """
import http.server, os, signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # the first process of a container gets no default action
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ.get("HOSTNAME", "").encode())
print("serving", flush=True)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
_RESTRICTED = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
_PROBE = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}


def pod(name: str, *, image: str, memory: str = "128Mi") -> dict[str, Any]:
    """A pod that answers HTTP with its own name."""
    container = {
        "name": "main",
        "image": image,
        "command": ["python", "-c", SERVER],
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": memory}},
        "securityContext": _RESTRICTED,
        "readinessProbe": _PROBE,
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def service(name: str, *, image: str) -> dict[str, Any]:
    """A Knative Service of that pod, as this project creates them for kernels: one pod or none."""
    annotations = {
        "autoscaling.knative.dev/window": "6s",
        "autoscaling.knative.dev/max-scale": "1",
        "autoscaling.knative.dev/target-burst-capacity": "0",
    }
    container = {
        "image": image,
        "command": ["python", "-c", SERVER],
        "ports": [{"containerPort": 8080}],
        "securityContext": _RESTRICTED,
        "readinessProbe": {"httpGet": {"path": "/"}},
    }
    template = {
        "metadata": {"annotations": annotations},
        "spec": {"containerConcurrency": 0, "enableServiceLinks": False, "containers": [container]},
    }
    meta = {"name": name, "labels": {"networking.knative.dev/visibility": "cluster-local"}}
    return {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": meta, "spec": {"template": template}}
