"""Builds the project's own images from their ordinary Dockerfiles, without a container engine.

buildah does it in a storage folder of its own in the cache, inside namespaces that die with us. An image is keyed by
its Dockerfile, the base image and the files that the Dockerfile copies; layers are kept, so that a change of a source
file rebuilds the last ones only. It pulls nothing: BASE_IMAGE is the local one.
"""

import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testcluster import host, pins, shell
from testcluster.base_image import BaseImage
from testcluster.errors import ClusterError
from testcluster.images import LocalImage, Store
from testcluster.layout import DOCKERFILES, REGISTRY, REPOSITORY, Layout
from testcluster.steps import Step

MOVING_TAG = "dev"  # what kernelspecs and tests name; it follows the newest build
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Builds:
    """The images below etc/docker, or below another folder of the same shape."""

    layout: Layout
    base: BaseImage
    folder: Path = DOCKERFILES
    context: Path = REPOSITORY

    def names(self) -> tuple[str, ...]:
        """One image a folder."""
        return tuple(sorted(path.parent.name for path in self.folder.glob("*/Dockerfile")))

    def reference(self, name: str) -> str:
        """The image's name with a tag that stands for its content."""
        dockerfile = self._dockerfile(name)
        copied = [self.context / path for path in copied_paths(dockerfile.read_text())]
        key = pins.digest(dockerfile.read_bytes(), self.base.key.encode(), pins.tree_digest(copied, base=self.context).encode())
        return f"{REGISTRY}/eg-knative/{name}:{key}"

    def steps(self, names: tuple[str, ...] = ()) -> list[Step]:
        """One step an image."""
        return [self._step(name) for name in names or self.names()]

    def load(self, store: Store, *, scratch: Path, names: tuple[str, ...] = ()) -> None:
        """Bring built images into the cluster's store, where they also go by their digest, and move the moving tag to them."""
        wanted = {name: self.reference(name) for name in names or self.names()}
        store.load_missing([LocalImage(ref, self._writer(ref)) for ref in wanted.values()], scratch=scratch)
        for name, reference in wanted.items():
            for alias in (f":{MOVING_TAG}", f"@{store.digest(reference)}"):
                store.tag(reference, f"{REGISTRY}/eg-knative/{name}{alias}")

    def _dockerfile(self, name: str) -> Path:
        path = self.folder / name / "Dockerfile"
        if not path.exists():
            raise ClusterError(f"there is no image {name}: {self.folder} has {', '.join(self.names()) or 'none'}")
        return path

    def _step(self, name: str) -> Step:
        reference = self.reference(name)
        mark = self._storage / "built" / reference.rpartition("/")[2].replace(":", "-")

        def make() -> None:
            self._build(name, reference)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()

        return Step(f"build image {name}", mark.exists, make)

    def _build(self, name: str, reference: str) -> None:
        if self.base.reference not in self._buildah("images", "--format", "{{.Name}}:{{.Tag}}"):
            self._buildah("pull", f"docker-archive:{self.base.archive}")
        self._buildah("rm", "--all")  # of a build that was killed
        words = ["build", "--pull=never", "--layers", "--isolation=chroot", "--network=host", "--format=docker"]
        words += [f"--build-arg=BASE_IMAGE={self.base.reference}"]
        bundle = host.certificate_bundle()
        if bundle:
            # A host may trust an authority of its own; the image must not: the bundle is there for the build only.
            words += [f"--volume={bundle}:{_BUNDLE}:ro", f"--build-arg=PIP_CERT={_BUNDLE}"]
        for variable in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
            if os.environ.get(variable):
                words += [f"--build-arg={variable}={os.environ[variable]}"]
        words += [f"--tag={reference}", f"--file={self._dockerfile(name)}", str(self.context)]
        self._buildah(*words, log=self.layout.logs / f"build-{name}.log")

    def _writer(self, reference: str) -> Callable[[Path], None]:
        def write(target: Path) -> None:
            self._buildah("push", reference, f"docker-archive:{target}:{reference}")

        return write

    def _buildah(self, *words: str, log: Path | None = None) -> str:
        self._storage.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._storage) as run:
            policy = Path(run) / "policy.json"
            policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
            options = ["--root", str(self._storage / "storage"), "--runroot", f"{run}/run", "--storage-driver", "overlay"]
            argv = ["buildah", *options, words[0], *_policy(words[0], policy), *words[1:]]
            environment = {**os.environ, "TMPDIR": run}
            return shell.run(shell.guarded(argv), env=environment, log=log, name=f"buildah {words[0]}")

    @property
    def _storage(self) -> Path:
        return self.layout.cache / "buildah"


def copied_paths(dockerfile: str) -> tuple[str, ...]:
    """What a Dockerfile copies out of the repository; copies between its own stages do not count."""
    found: list[str] = []
    for line in re.sub(r"\\\n", " ", dockerfile).splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0].upper() not in ("COPY", "ADD"):
            continue
        options = [word for word in words[1:] if word.startswith("--")]
        if not any(option.startswith("--from=") for option in options):
            found += [word.rstrip("/") for word in words[1:] if not word.startswith("--")][:-1]
    return tuple(found)


def _policy(command: str, policy: Path) -> list[str]:
    """Signatures are no question here: nothing is pulled. Only these commands know the option."""
    return [f"--signature-policy={policy}"] if command in ("build", "pull", "push") else []
