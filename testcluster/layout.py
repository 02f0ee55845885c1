"""Where the test cluster keeps its files and which addresses it uses.

`cache` outlives `down` (binaries, images, logs of the last run); `state` is one cluster's life and `down` removes it.
Nothing outside these two folders, one network link and one control group is written on the host.
"""

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DOCKERFILES = REPOSITORY / "etc" / "docker"
PINS = Path(__file__).resolve().parent / "pins"

NODE_NAME = "one-node"
REGISTRY = "dev.local"  # Knative resolves no digests for this name, and no resolver knows it: images are local or fail

# One range that home and office networks seldom use. Routes exist on the host only while the cluster runs.
LINK = "egknative0"
HOST_ADDRESS = "10.213.0.1"
NODE_ADDRESS = "10.213.0.2"
LINK_PREFIX = 30
LINK_RANGE = "10.213.0.0/30"
SERVICE_RANGE = "10.213.16.0/20"
API_SERVICE_ADDRESS = "10.213.16.1"
DNS_ADDRESS = "10.213.16.10"
POD_RANGE = "10.213.32.0/20"
POD_GATEWAY = "10.213.32.1"
API_SERVER = f"https://{NODE_ADDRESS}:6443"

CGROUP = "eg-knative"
MARKER = "EG_KNATIVE_NODE"  # in the environment of every process we start inside the node: teardown finds them by it


@dataclass(frozen=True)
class Layout:
    """The folders of one user's test cluster."""

    cache: Path

    @classmethod
    def default(cls) -> "Layout":
        """The layout under the user's cache folder."""
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        return cls(cache=Path(base).resolve() / "eg-knative" / "cluster")

    @property
    def state(self) -> Path:
        """Files of the running cluster; removed by `down`."""
        return self.cache / "state"

    @property
    def store(self) -> Path:
        """containerd's images, kept between runs so that a later `up` imports nothing."""
        return self.cache / "store"

    @property
    def logs(self) -> Path:
        """One log a daemon, of the current or the last run."""
        return self.cache / "logs"

    @property
    def lock(self) -> Path:
        """Held while the cluster is being changed."""
        return self.cache / "lock"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        """Keys and certificates, new for each `up`."""
        return self.state / "pki"

    @property
    def complete(self) -> Path:
        """Exists once `up` has finished; without it the next `up` starts from nothing."""
        return self.state / "complete"
