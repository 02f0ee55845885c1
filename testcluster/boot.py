"""Starting the cluster: the order in which its parts come up, from an empty state folder to Knative answering.

Each phase is timed; a phase that fails raises, and the caller takes down what there is. Nothing is repaired here.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from testcluster import control_plane, host_state, manifests, pki, worker
from testcluster.binaries import Binaries
from testcluster.builds import Builds
from testcluster.images import Store, SystemImages
from testcluster.kubectl import Kubectl
from testcluster.layout import NODE_NAME, Layout
from testcluster.processes import Node
from testcluster.progress import Progress

_NAMESPACES = ("kube-system", "knative-serving", "kourier-system")


@dataclass(frozen=True)
class Boot:
    """The parts that one start needs."""

    layout: Layout
    progress: Progress
    node: Node
    binaries: Binaries
    images: SystemImages
    builds: Builds
    kubectl: Kubectl

    def run(self, *, images: bool) -> None:
        """Start everything; with `images`, the project's own images are in the store too."""
        phase, node, layout = self.progress.phase, self.node, self.layout
        with phase("keys"):
            shutil.rmtree(layout.logs, ignore_errors=True)  # of the last run
            layout.state.mkdir(parents=True)
            pki.make(layout.pki)
            worker.prepare(layout, sandbox_image=self.images.reference("pause"))
        with phase("node"):
            host_state.remember_settings(layout)
            host_state.make_cgroups()
            node.create()
            self._mount()
            host_state.connect(node)
        with phase("control plane"):
            node.start("etcd", control_plane.etcd(layout))
            node.start("kube-apiserver", control_plane.apiserver(layout, self.binaries))
        with phase("images"), self._store_only() as store:
            store.load_missing(self.images.all(), scratch=layout.state)
            if images:
                self.builds.load(store, scratch=layout.state)
        with phase("api server"):
            node.start("containerd", worker.containerd(layout))
            control_plane.wait_until_ready(node, timeout=120)
            shutil.copyfile(layout.pki / "admin.kubeconfig", layout.kubeconfig)
            layout.kubeconfig.chmod(0o600)
        with phase("kubelet"):
            node.start("kube-controller-manager", control_plane.controller_manager(layout, self.binaries))
            node.start("kube-scheduler", control_plane.scheduler(layout, self.binaries))
            node.wait("containerd", Store(node).answers, daemon="containerd", timeout=60)
            node.start("kubelet", worker.kubelet(layout, self.binaries))
            node.start("kube-proxy", worker.proxy(layout, self.binaries))
            self.kubectl.apply(manifests.coredns(image=self.images.reference("coredns")))
        with phase("node ready"):
            self.kubectl.wait("the node", "--for=condition=Ready", f"node/{NODE_NAME}", timeout=60)
        ready_after = self.progress.elapsed()
        with phase("knative"):
            self._install_knative()
        with phase("knative available"):
            for namespace in _NAMESPACES:
                words = ("--for=condition=Available", "deployment", "--all", f"--namespace={namespace}")
                self.kubectl.wait(f"the deployments in {namespace}", *words, timeout=120)
        layout.complete.touch()
        seconds = self.progress.elapsed()
        self.progress.say(f"test cluster up: node ready after {ready_after:.0f} s, Knative after {seconds:.0f} s")

    def _install_knative(self) -> None:
        images = self.images.go_references()
        documents = manifests.adapt(manifests.upstream(), images=images, envoy=self.images.reference("envoy"))
        definitions, rest = manifests.custom_resources(documents)
        self.kubectl.apply(manifests.dump(definitions))
        names = [f"crd/{document['metadata']['name']}" for document in definitions]
        self.kubectl.wait("Knative's resource definitions", "--for=condition=Established", *names, timeout=60)
        self.kubectl.apply(manifests.dump(rest), timeout=120)

    def _mount(self) -> None:
        """Give the node a /run of its own and catch what programs insist on writing below /var."""
        over, work = self.layout.state / "var", self.layout.state / "var-work"
        for folder in (over, work):
            folder.mkdir()
        self.node.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
        options = f"lowerdir=/var,upperdir={over},workdir={work}"
        self.node.run(["mount", "-t", "overlay", "-o", options, "overlay", "/var"])

    @contextmanager
    def _store_only(self) -> Iterator[Store]:
        """containerd without pods, to forget those of a killed node and to import images before the kubelet asks."""
        shutil.rmtree(self.layout.store / "io.containerd.grpc.v1.cri", ignore_errors=True)
        self.node.start("containerd", worker.containerd_store(self.layout))
        store = Store(self.node)
        self.node.wait("containerd", store.answers, daemon="containerd", timeout=60)
        store.forget_containers()
        yield store
        self.node.stop("containerd")
