"""`up`, `down` and `load-image`: what a person asks for, in terms of the parts that do it.

`up` prepares what the cache lacks, then starts from an empty state folder; if an earlier `up` did not get to its end,
what is left of it goes first. There is no repair of a half-started cluster: starting anew takes half a minute.
"""

import shutil
import signal
from contextlib import suppress
from pathlib import Path

from testcluster import host, host_state, lock
from testcluster.base_image import BaseImage
from testcluster.binaries import Binaries
from testcluster.boot import Boot
from testcluster.builds import Builds
from testcluster.errors import ClusterError, CommandError, NotReadyError
from testcluster.images import Store, SystemImages
from testcluster.kubectl import Kubectl
from testcluster.layout import Layout
from testcluster.processes import Node, marked, until
from testcluster.progress import Progress
from testcluster.steps import Step, pending


class Cluster:
    """One user's test cluster."""

    def __init__(self, layout: Layout, progress: Progress) -> None:
        self.layout = layout
        self.progress = progress
        self.node = Node(layout)
        self.binaries = Binaries(layout)
        self.base = BaseImage(layout)
        self.images = SystemImages(layout, self.binaries, self.base)
        self.builds = Builds(layout, self.base)

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
            self._prepare(images=images)
            if self.running:
                if images:
                    self.builds.load(Store(self.node), scratch=self.layout.state)
                return
            self._tear_down()
            host_state.check_free()
            try:
                self._boot().run(images=images)
            except BaseException:
                # Ctrl-C included. Logs stay in the cache; a half-started node is of no use to anybody.
                self._tear_down()
                raise

    def prepare(self, *, images: bool = True) -> None:
        """Fill the cache and start nothing."""
        host.check()
        with lock.held(self.layout.lock, doing="up --prepare-only"):
            self._prepare(images=images)

    def _prepare(self, *, images: bool) -> None:
        self._sweep()
        missing = host.missing_packages()
        steps = [Step(f"install {' '.join(missing)}", lambda: not missing, lambda: host.install_packages(missing))]
        steps += [*self.binaries.steps(), self.base.step()]
        steps += self.builds.steps() if images else []
        self._make(pending(steps))

    def _make(self, steps: list[Step]) -> None:
        for number, step in enumerate(steps, start=1):
            with self.progress.step(step.name, number=number, total=len(steps)):
                step.make()

    def _boot(self) -> Boot:
        return Boot(
            layout=self.layout,
            progress=self.progress,
            node=self.node,
            binaries=self.binaries,
            images=self.images,
            builds=self.builds,
            kubectl=self.kubectl,
        )

    # --- images of the project

    def load_built(self, names: tuple[str, ...] = (), *, builds: Builds | None = None) -> None:
        """Build the project's images, or these only, or those of another folder, and bring them into the running cluster."""
        host.check()
        with lock.held(self.layout.lock, doing="load-image"):
            self.node.first()
            builds = builds or self.builds
            self._make(pending(builds.steps(names)))
            builds.load(Store(self.node), scratch=self.layout.state, names=names)

    def load_archive(self, archive: Path) -> None:
        """Bring a docker-archive or OCI archive into the running cluster."""
        host.check()
        with lock.held(self.layout.lock, doing="load-image"):
            Store(self.node).load(archive.resolve())

    # --- down

    def down(self) -> None:
        """End the cluster and leave the machine as it was, whatever state it is in."""
        host.check()
        with lock.held(self.layout.lock, doing="down"):
            self._tear_down()
            self._sweep()

    def _tear_down(self) -> None:
        if not self.layout.state.exists() and not marked(self.layout):
            return  # nothing here is ours: the link may belong to a cluster of another cache folder
        # The node's first process takes every other one along, containers included. A process that is marked as ours
        # and still lives was started by an `up` that died before it could record it.
        with suppress(ClusterError):
            self.node.first().kill(signal.SIGKILL)
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
