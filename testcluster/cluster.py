"""`up` and `down`: the order in which the parts become one cluster, and how all of it goes away.

`up` prepares what the cache lacks, then starts from an empty state folder; if an earlier `up` did not get to its end,
what is left of it goes first. There is no repair of a half-started cluster: starting anew takes half a minute.
"""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from testcluster import control_plane, host, host_state, lock, manifests, pki, worker
from testcluster.base_image import BaseImage
from testcluster.binaries import Binaries
from testcluster.builds import Builds
from testcluster.errors import ClusterError, CommandError, NotReadyError
from testcluster.images import Store, SystemImages
from testcluster.kubectl import Kubectl
from testcluster.layout import NODE_NAME, Layout
from testcluster.processes import Node, marked, until
from testcluster.progress import Progress
from testcluster.steps import Step, pending

_NAMESPACES = ("kube-system", "knative-serving", "kourier-system")


@dataclass(frozen=True)
class Cluster:
    """One user's test cluster."""

    layout: Layout
    progress: Progress
    node: Node = field(init=False)
    binaries: Binaries = field(init=False)
    base: BaseImage = field(init=False)
    images: SystemImages = field(init=False)
    builds: Builds = field(init=False)

    def __post_init__(self) -> None:
        parts = {"node": Node(self.layout), "binaries": Binaries(self.layout), "base": BaseImage(self.layout)}
        for name, part in parts.items():
            object.__setattr__(self, name, part)
        object.__setattr__(self, "images", SystemImages(self.layout, self.binaries, self.base))
        object.__setattr__(self, "builds", Builds(self.layout, self.base))

    @property
    def kubectl(self) -> Kubectl:
        """kubectl as the administrator."""
        return Kubectl(self.binaries.path("kubectl"), self.layout.kubeconfig)

    @property
    def running(self) -> bool:
        """Whether an `up` has finished and all of its daemons are alive."""
        if not self.layout.complete.exists():
            return False
        daemons = self.node.daemons()
        return bool(daemons) and all(self.node.running(name) for name in ("node", *daemons))

    # --- up

    def up(self, *, images: bool = True) -> None:
        """Make the cluster, or leave the one that runs as it is; either way the project's images are in it."""
        host.check()
        with lock.held(self.layout.lock, doing="up"):
            self._sweep()
            self.prepare(images=images)
            if self.running:
                self._load_built(images=images)
                return
            self._tear_down()
            host_state.check_free()
            try:
                self._start(images=images)
            except ClusterError:
                # Logs stay in the cache; a half-started node is of no use to anybody.
                self._tear_down()
                raise

    def prepare(self, *, images: bool = True) -> None:
        """Build and fetch what the cache lacks, with progress for a person."""
        missing = host.missing_packages()
        steps = [Step(f"install {' '.join(missing)}", lambda: not missing, lambda: host.install_packages(missing))]
        steps += [*self.binaries.steps(), self.base.step()]
        steps += self.builds.steps() if images else []
        self._make(pending(steps))

    def _make(self, steps: list[Step]) -> None:
        for number, step in enumerate(steps, start=1):
            with self.progress.step(step.name, number=number, total=len(steps)):
                step.make()

    def _start(self, *, images: bool) -> None:
        phase, node, layout = self.progress.phase, self.node, self.layout
        with phase("keys"):
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
            ready = lambda: control_plane.api_ready(layout.pki)  # noqa: E731 (one line reads better here)
            node.wait("the API server", ready, daemon="kube-apiserver", timeout=120)
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

    # --- images of the project

    def load_built(self, names: tuple[str, ...] = ()) -> None:
        """Build the project's images (or these only) and bring them into the running cluster."""
        host.check()
        with lock.held(self.layout.lock, doing="load-image"):
            self.node.first()
            self._make(pending(self.builds.steps(names)))
            self._load_built(images=True, names=names)

    def load_archive(self, archive: Path) -> None:
        """Bring a docker-archive or OCI archive into the running cluster."""
        host.check()
        with lock.held(self.layout.lock, doing="load-image"):
            Store(self.node).load(archive.resolve())

    def _load_built(self, *, images: bool, names: tuple[str, ...] = ()) -> None:
        if images:
            self.builds.load(Store(self.node), scratch=self.layout.state, names=names)

    # --- down

    def down(self) -> None:
        """End the cluster and leave the machine as it was, whatever state it is in."""
        host.check()
        with lock.held(self.layout.lock, doing="down"):
            self._tear_down()
            self._sweep()

    def _tear_down(self) -> None:
        if not self.layout.state.exists():
            return  # nothing here is ours: the link may belong to a cluster of another cache folder
        # The node's first process takes every other one along, containers included. A process that is marked as ours
        # and still lives was started by an `up` that died before it could record it.
        try:
            self.node.first().kill(signal.SIGKILL)
        except ClusterError:
            pass
        if not until(lambda: not self._kill_marked(), timeout=10):
            pids = ", ".join(str(process.pid) for process in marked(self.layout))
            raise NotReadyError(f"processes of the test cluster do not end: {pids}; see `ps`, then try again")
        host_state.disconnect()
        if not until(host_state.remove_cgroups, timeout=10, every=0.1):
            raise NotReadyError(f"control groups are still in use: {host_state.cgroups()[0]}; try again")
        host_state.restore_settings(self.layout)
        shutil.rmtree(self.layout.state, ignore_errors=True)
        if self.layout.state.exists():
            raise CommandError(f"cannot remove {self.layout.state}: is something below it mounted?")

    def _kill_marked(self) -> bool:
        left = marked(self.layout)
        for process in left:
            process.kill(signal.SIGKILL)
        return bool(left)

    def _sweep(self) -> None:
        """Remove what a killed `up` was writing in the cache."""
        for pattern in ("base/root-*", "bin/*/tmp*", "buildah/tmp*"):
            for folder in self.layout.cache.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)


