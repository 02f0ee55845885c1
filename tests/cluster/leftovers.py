"""What a test left in its namespace, and what can be kept of a test that failed."""

import json
import re
from functools import lru_cache
from pathlib import Path

from testcluster.errors import ClusterError
from testcluster.kubectl import Kubectl
from testcluster.processes import until

# Kubernetes puts these into every namespace, or writes them about objects.
_ALWAYS = re.compile(r"^(configmap/(kube-root|istio-ca-root)\S*|serviceaccount/default|event(\.events\.k8s\.io)?/\S*)$")


def find(kubectl: Kubectl, namespace: str) -> list[str]:
    """Names of all objects of a namespace that no test may leave there, terminating ones included."""
    listed = kubectl("get", _kinds(kubectl), f"--namespace={namespace}", "--ignore-not-found", "--output=name")
    return [name for name in listed.split() if not _ALWAYS.match(name)]


def wait_for_none(kubectl: Kubectl, namespace: str, *, timeout: float) -> list[str]:
    """Wait until nothing is left, as owners' deletions take a moment to reach what they own; return what still is."""
    left: list[str] = []

    def clean() -> bool:
        left[:] = find(kubectl, namespace)
        return not left

    until(clean, timeout=timeout, every=0.5)
    return left


def keep(kubectl: Kubectl, namespace: str, folder: Path) -> None:
    """Write a namespace's events, objects and container logs to files; whatever cannot be had is skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = {
        "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
        "objects.yaml": ("get", _kinds(kubectl), "--ignore-not-found", "--output=yaml"),
        "pods.txt": ("describe", "pods"),
    }
    for name, words in commands.items():
        _write(kubectl, folder / name, *words, f"--namespace={namespace}")
    for pod, container in _containers(kubectl, namespace):
        for which in ("", "--previous"):
            name = f"{pod}.{container}{'.previous' if which else ''}.log"
            words = ("logs", pod, f"--container={container}", *([which] if which else []))
            _write(kubectl, folder / name, *words, f"--namespace={namespace}")


def _write(kubectl: Kubectl, path: Path, *words: str) -> None:
    try:
        path.write_text(kubectl(*words))
    except ClusterError:
        return


def _containers(kubectl: Kubectl, namespace: str) -> list[tuple[str, str]]:
    try:
        pods = json.loads(kubectl("get", "pods", f"--namespace={namespace}", "--output=json"))["items"]
    except ClusterError:
        return []
    return [(pod["metadata"]["name"], container["name"]) for pod in pods for container in pod["spec"]["containers"]]


@lru_cache
def _kinds(kubectl: Kubectl) -> str:
    return ",".join(kubectl("api-resources", "--namespaced", "--verbs=list,delete", "--output=name").split())
