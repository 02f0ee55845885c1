"""Command lines of etcd and of Kubernetes' control plane, and how to tell that they are ready."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path

from testcluster.binaries import Binaries
from testcluster.layout import API_SERVER, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE, Layout
from testcluster.processes import Node

_ETCD = "http://127.0.0.1:2379"  # on the node's own loopback: nothing outside its namespace can reach it


def etcd(layout: Layout) -> list[str]:
    """The store. A test cluster's data need not survive a power cut: no fsync."""
    data = str(layout.state / "etcd")
    urls = [f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}", "--listen-peer-urls=http://127.0.0.1:2380"]
    return ["/usr/bin/etcd", f"--data-dir={data}", *urls, "--unsafe-no-fsync", "--logger=zap", "--log-level=warn"]


def apiserver(layout: Layout, binaries: Binaries) -> list[str]:
    """The API server, with the authorizers and admission plugins of an ordinary cluster."""
    pki = layout.pki
    return [
        str(binaries.path("kube-apiserver")),
        f"--etcd-servers={_ETCD}",
        "--secure-port=6443",
        f"--advertise-address={NODE_ADDRESS}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--allow-privileged=true",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet.key'}",
        # Without it `exec` and `logs` look up the node's name in a DNS that does not know it.
        "--kubelet-preferred-address-types=InternalIP",
        "--profiling=false",
    ]


def controller_manager(layout: Layout, binaries: Binaries) -> list[str]:
    """The controllers; no leader election, there is only one."""
    pki = layout.pki
    return [
        str(binaries.path("kube-controller-manager")),
        f"--kubeconfig={pki / 'controller-manager.kubeconfig'}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--service-account-private-key-file={pki / 'service-account.key'}",
        f"--cluster-cidr={POD_RANGE}",
        "--profiling=false",
    ]


def scheduler(layout: Layout, binaries: Binaries) -> list[str]:
    """The scheduler."""
    return [
        str(binaries.path("kube-scheduler")),
        f"--kubeconfig={layout.pki / 'scheduler.kubeconfig'}",
        "--bind-address=127.0.0.1",
        "--leader-elect=false",
        "--profiling=false",
    ]


def wait_until_ready(node: Node, *, timeout: float) -> None:
    """Wait for the API server; raise if it does not come up or dies."""
    node.wait("the API server", lambda: api_ready(node.layout.pki), daemon="kube-apiserver", timeout=timeout)


def api_ready(pki: Path, *, path: str = "/readyz") -> bool:
    """Whether the API server says that it is ready, asked as the administrator from the host."""
    context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
    context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
    handler = urllib.request.HTTPSHandler(context=context)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
    try:
        with opener.open(API_SERVER + path, timeout=2) as answer:
            return bool(answer.status == 200)
    except (TimeoutError, urllib.error.URLError, ConnectionError):
        return False
