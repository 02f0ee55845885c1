"""Keys and certificates of one cluster's life, by openssl: an authority and one identity a component.

They are made new on each `up` and lie in the state folder, readable by their owner only. They last a month and guard
nothing but a test cluster.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from testcluster import shell
from testcluster.layout import API_SERVER, API_SERVICE_ADDRESS, NODE_ADDRESS, NODE_NAME

_DAYS = "30"
_API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for."""

    file: str
    name: str
    organization: str = ""
    addresses: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The subject in openssl's words."""
        return (f"/O={self.organization}" if self.organization else "") + f"/CN={self.name}"

    @property
    def alternatives(self) -> str:
        """The subjectAltName extension, or nothing."""
        names = [f"IP:{address}" for address in self.addresses] + [f"DNS:{name}" for name in self.dns]
        return f"subjectAltName={','.join(names)}\n" if names else ""


IDENTITIES = (
    Identity("apiserver", "kube-apiserver", addresses=(NODE_ADDRESS, API_SERVICE_ADDRESS, "127.0.0.1"), dns=_API_NAMES),
    Identity("apiserver-kubelet", "kube-apiserver-kubelet-client", "system:masters"),
    Identity("kubelet-serving", f"system:node:{NODE_NAME}", "system:nodes", (NODE_ADDRESS,), (NODE_NAME,)),
    Identity("kubelet", f"system:node:{NODE_NAME}", "system:nodes"),
    Identity("controller-manager", "system:kube-controller-manager"),
    Identity("scheduler", "system:kube-scheduler"),
    Identity("proxy", "system:kube-proxy"),
    Identity("admin", "eg-knative-admin", "system:masters"),
)
KUBECONFIGS = ("kubelet", "controller-manager", "scheduler", "proxy", "admin")


def make(folder: Path) -> None:
    """Write the authority, all identities and the service accounts' key."""
    folder.mkdir(parents=True, mode=0o700)
    _key(folder / "ca.key")
    ca = ["openssl", "req", "-x509", "-new", "-key", f"{folder}/ca.key", "-subj", "/CN=eg-knative-test", "-days", _DAYS]
    shell.run([*ca, "-out", folder / "ca.crt"])
    _key(folder / "service-account.key")
    public = ["openssl", "ec", "-in", f"{folder}/service-account.key", "-pubout"]
    shell.run([*public, "-out", folder / "service-account.pub"])
    for identity in IDENTITIES:
        _issue(folder, identity)
    for name in KUBECONFIGS:
        path = folder / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(kubeconfig(folder, name))


def kubeconfig(folder: Path, name: str) -> str:
    """A kubeconfig for one identity with everything inside, so that the one file can be handed on."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    user = {
        "client-certificate-data": inline(folder / f"{name}.crt"),
        "client-key-data": inline(folder / f"{name}.key"),
    }
    cluster = {"server": API_SERVER, "certificate-authority-data": inline(folder / "ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "eg-knative-test", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": "eg-knative-test", "context": {"cluster": "eg-knative-test", "user": name}}],
        "current-context": "eg-knative-test",
    }
    return json.dumps(config, indent=1)  # JSON is YAML


def _issue(folder: Path, identity: Identity) -> None:
    key, request, certificate = (folder / f"{identity.file}.{end}" for end in ("key", "csr", "crt"))
    _key(key)
    shell.run(["openssl", "req", "-new", "-key", key, "-subj", identity.subject, "-out", request])
    usage = "keyUsage=digitalSignature\nextendedKeyUsage=clientAuth,serverAuth\n" + identity.alternatives
    extensions = folder / f"{identity.file}.ext"
    extensions.write_text(usage)
    sign = ["openssl", "x509", "-req", "-in", f"{request}", "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"]
    serial = ["-CAcreateserial", "-days", _DAYS, "-extfile", f"{extensions}", "-out", f"{certificate}"]
    shell.run([*sign, *serial])


def _key(path: Path) -> None:
    path.touch(mode=0o600)
    shell.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path])
