"""kubectl against the test cluster, from the host."""

from dataclasses import dataclass
from pathlib import Path

from testcluster import shell
from testcluster.errors import CommandError, NotReadyError
from testcluster.processes import until


@dataclass(frozen=True)
class Kubectl:
    """The compiled kubectl with one kubeconfig."""

    program: Path
    kubeconfig: Path

    def __call__(self, *words: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Run kubectl to its end and return its output."""
        environment = shell.clean_environment(KUBECONFIG=str(self.kubeconfig), KUBECACHEDIR=str(self._discovery))
        argv = [str(self.program), *words]
        return shell.run(argv, env=environment, stdin=stdin, timeout=timeout, name=f"kubectl {' '.join(words[:3])}")

    def apply(self, manifest: str, *, timeout: float = 60) -> None:
        """Create or update what the manifest says, with this cluster's tool as the fields' owner."""
        # Client-side apply keeps a copy in an annotation, and Knative's definitions are larger than one may be.
        words = ("--server-side", "--force-conflicts", "--field-manager=testcluster", "--filename=-")
        self("apply", *words, stdin=manifest, timeout=timeout)

    def wait(self, what: str, *words: str, timeout: float) -> None:
        """`kubectl wait`, patient with an API that does not know the resource yet."""

        def met() -> bool:
            try:
                self("wait", "--timeout=10s", *words, timeout=20)
            except CommandError:
                return False
            return True

        if not until(met, timeout=timeout, every=0.2):
            raise NotReadyError(f"{what} not ready within {timeout:.0f} s: see `scripts/cluster status`")

    @property
    def _discovery(self) -> Path:
        return self.kubeconfig.parent / "kube-cache"
