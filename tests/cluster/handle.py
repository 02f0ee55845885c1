"""The cluster that a test talks to: ours, or one of the user's own that KUBECONFIG or --kubeconfig names."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from testcluster.cluster import Cluster
from testcluster.errors import ClusterError, CommandError, UnsupportedMachineError
from testcluster.kubectl import Kubectl
from testcluster.layout import REGISTRY
from testcluster.processes import until


@dataclass(frozen=True)
class ClusterUnderTest:
    """What tests need to know of a cluster. `own` is None for a user's: its daemons are not ours to touch."""

    kubectl: Kubectl
    own: Cluster | None

    @cached_property
    def knative(self) -> bool:
        """Whether Knative Serving is installed."""
        try:
            return "serving.knative.dev" in self.kubectl("api-versions")
        except CommandError as error:
            raise ClusterError(f"the cluster of {self.kubectl.kubeconfig} does not answer: {error}") from error

    @cached_property
    def resize(self) -> bool:
        """Whether pods can be resized in place."""
        resources = json.loads(self.kubectl("get", "--raw", "/api/v1"))["resources"]
        return any(resource["name"] == "pods/resize" for resource in resources)

    @property
    def kernel_image(self) -> str | None:
        """The Python kernel image, by a name that this cluster can pull."""
        if self.own is not None:
            return f"{REGISTRY}/eg-knative/kernel-py:dev"
        return os.environ.get("EG_KNATIVE_KERNEL_IMAGE")

    def get(self, *words: str, namespace: str) -> dict[str, Any]:
        """One object, or a list, as the API returns it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *words, f"--namespace={namespace}", "--output=json"))
        return found

    def apply(self, *documents: dict[str, Any], namespace: str) -> None:
        """Create or update objects in a namespace."""
        body = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", stdin=json.dumps(body))

    def delete(self, *words: str, namespace: str, timeout: float = 90) -> None:
        """Delete objects and wait until they are gone."""
        self.kubectl("delete", *words, f"--namespace={namespace}", "--wait", timeout=timeout)

    def wait(self, what: str, condition: str, *, namespace: str, timeout: float = 60) -> None:
        """Wait for a condition such as `Ready` of an object such as `pod/p`."""
        self.kubectl.wait(what, f"--for=condition={condition}", what, f"--namespace={namespace}", timeout=timeout)


def users_own(kubeconfig: Path) -> ClusterUnderTest:
    """A cluster of the user's, by the user's kubectl."""
    program = shutil.which("kubectl")
    if program is None:
        raise UnsupportedMachineError("KUBECONFIG names a cluster of your own: put a `kubectl` on PATH")
    return ClusterUnderTest(Kubectl(Path(program), kubeconfig), None)


def eventually(true: Callable[[], bool], *, within: float, what: str) -> None:
    """Assert that something becomes true in time."""
    assert until(true, timeout=within, every=0.2), f"{what}: not within {within:.0f} s"
