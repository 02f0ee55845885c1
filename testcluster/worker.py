"""The node's working half: containerd, the kubelet, kube-proxy, and the pod network, as files and command lines."""

import json
from pathlib import Path

from testcluster.binaries import Binaries
from testcluster.layout import (
    CGROUP,
    DNS_ADDRESS,
    NODE_ADDRESS,
    NODE_NAME,
    POD_GATEWAY,
    POD_RANGE,
    Layout,
)

SOCKET = "/run/containerd/containerd.sock"  # in the node's own /run: a path below a long home would not fit a socket
CTR = ("ctr", "--address", SOCKET, "--namespace", "k8s.io")
_CRI = "io.containerd.grpc.v1.cri"
_MAX_PODS = 250


def prepare(layout: Layout, *, sandbox_image: str) -> None:
    """Write all configuration files."""
    state = layout.state
    (state / "cni").mkdir(parents=True, exist_ok=True)
    (state / "cni" / "10-pods.conflist").write_text(json.dumps(_pod_network(state), indent=1))
    (state / "containerd.toml").write_text(_containerd(layout, sandbox_image))
    (state / "containerd-store.toml").write_text(_containerd(layout, ""))
    # CoreDNS answers for the cluster and refuses the rest at once; nothing here may wait for a resolver of the host's.
    (state / "resolv.conf").write_text(f"nameserver {DNS_ADDRESS}\n")
    (state / "kubelet.json").write_text(json.dumps(_kubelet(layout), indent=1))


def containerd(layout: Layout) -> list[str]:
    """containerd as the kubelet needs it."""
    return ["/usr/bin/containerd", "--config", str(layout.state / "containerd.toml")]


def containerd_store(layout: Layout) -> list[str]:
    """containerd for tending the image store only: it starts no pods and remembers none."""
    return ["/usr/bin/containerd", "--config", str(layout.state / "containerd-store.toml")]


def kubelet(layout: Layout, binaries: Binaries) -> list[str]:
    """The kubelet."""
    return [
        str(binaries.path("kubelet")),
        f"--config={layout.state / 'kubelet.json'}",
        f"--kubeconfig={layout.pki / 'kubelet.kubeconfig'}",
        f"--root-dir={layout.state / 'kubelet'}",
        f"--cert-dir={layout.state / 'kubelet-pki'}",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
    ]


def proxy(layout: Layout, binaries: Binaries) -> list[str]:
    """kube-proxy; the conntrack limits belong to the whole machine and are left alone."""
    return [
        str(binaries.path("kube-proxy")),
        f"--kubeconfig={layout.pki / 'proxy.kubeconfig'}",
        f"--hostname-override={NODE_NAME}",
        f"--cluster-cidr={POD_RANGE}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ]


def _kubelet(layout: Layout) -> dict[str, object]:
    pki = layout.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet-serving.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-serving.key"),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": str(layout.state / "resolv.conf"),
        "podLogsDir": str(layout.state / "pod-logs"),
        "cgroupRoot": f"/{CGROUP}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "maxPods": _MAX_PODS,
        "registerWithTaints": [],
        "serializeImagePulls": False,
        # A developer's disk is fuller than a server's; images are ours to keep.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "shutdownGracePeriod": "0s",
        "logging": {"verbosity": 1},
    }


def _pod_network(state: Path) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": POD_RANGE, "gateway": POD_GATEWAY}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(state / "cni-addresses"),
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _containerd(layout: Layout, sandbox_image: str) -> str:
    unused = [f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")]
    disabled = unused if sandbox_image else [*unused, _CRI]
    lines = [
        "version = 2",
        f"root = {json.dumps(str(layout.store))}",
        'state = "/run/containerd"',
        f"disabled_plugins = {json.dumps(disabled)}",
        "[grpc]",
        f"address = {json.dumps(SOCKET)}",
    ]
    if sandbox_image:
        lines += [
            f'[plugins."{_CRI}"]',
            f"sandbox_image = {json.dumps(sandbox_image)}",
            # A lower oom_score_adj than one's own needs CAP_SYS_RESOURCE, which a container or a small VM lacks.
            "restrict_oom_score_adj = true",
            "netns_mounts_under_state_dir = true",
            f'[plugins."{_CRI}".cni]',
            'bin_dir = "/usr/lib/cni"',
            f"conf_dir = {json.dumps(str(layout.state / 'cni'))}",
            f'[plugins."{_CRI}".containerd]',
            'snapshotter = "overlayfs"',
            f'[plugins."{_CRI}".containerd.runtimes.runc]',
            'runtime_type = "io.containerd.runc.v2"',
        ]
    return "\n".join(lines) + "\n"
