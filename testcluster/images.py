"""The images of the cluster's own parts, and the image store they live in.

Each is one static program in an otherwise empty image (Envoy brings its C library along), under a tag that is a key of
its content: what is in the store under that tag needs no import.
"""

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testcluster import archives, pins
from testcluster.base_image import BaseImage
from testcluster.binaries import Binaries
from testcluster.errors import CommandError
from testcluster.layout import REGISTRY, Layout
from testcluster.processes import Node
from testcluster.worker import CTR

_NONROOT = "65532"
_BUSYBOX = Path("/usr/bin/busybox")
_KNATIVE = ("activator", "autoscaler", "controller", "queue", "webhook")


@dataclass(frozen=True)
class LocalImage:
    """An image that we can write whenever it is asked for."""

    reference: str
    write: Callable[[Path], None]


@dataclass(frozen=True)
class SystemImages:
    """The images that the cluster itself runs."""

    layout: Layout
    binaries: Binaries
    base: BaseImage

    def reference(self, name: str) -> str:
        """The image's name, as manifests use it."""
        return f"{REGISTRY}/eg-knative/{name}:{self._key(name)}"

    def go_references(self) -> dict[str, str]:
        """Local images by the Go import path that Knative's manifests name."""
        serving = {f"ko://knative.dev/serving/cmd/{name}": self.reference(f"knative-{name}") for name in _KNATIVE}
        return {**serving, "ko://knative.dev/net-kourier/cmd/kourier": self.reference("kourier")}

    def all(self) -> list[LocalImage]:
        """Every image, in the order of its first use."""
        programs = ["coredns", *(f"knative-{name}" for name in _KNATIVE), "kourier"]
        images = [LocalImage(self.reference("pause"), self._write_pause)]
        images += [LocalImage(self.reference(name), self._program(name)) for name in programs]
        return [*images, LocalImage(self.reference("envoy"), self._write_envoy)]

    def _key(self, name: str) -> str:
        if name == "pause":
            return pins.digest(_BUSYBOX.read_bytes())
        if name == "envoy":
            return pins.digest(self.binaries.key("envoy").encode(), self.base.key.encode())
        return self.binaries.key(_command(name))

    def _program(self, name: str) -> Callable[[Path], None]:
        command = _command(name)
        user = "" if name == "coredns" else _NONROOT  # port 53 is a privileged one
        config = archives.ImageConfig(entrypoint=(f"/ko-app/{command}",), user=user)

        def fill(layer: tarfile.TarFile) -> None:
            archives.add_folder(layer, "ko-app")
            archives.add_file(layer, self.binaries.path(command), f"ko-app/{command}")

        def write(target: Path) -> None:
            archives.write_layer(target, reference=self.reference(name), config=config, fill=fill)

        return write

    def _write_pause(self, target: Path) -> None:
        config = archives.ImageConfig(entrypoint=("/bin/busybox", "sleep", "2147483647"), user="65535")

        def fill(layer: tarfile.TarFile) -> None:
            archives.add_folder(layer, "bin")
            archives.add_file(layer, _BUSYBOX, "bin/busybox")

        archives.write_layer(target, reference=self.reference("pause"), config=config, fill=fill)

    def _write_envoy(self, target: Path) -> None:
        config = archives.ImageConfig(entrypoint=("/usr/local/bin/envoy",), user=_NONROOT)
        with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".layer") as scratch:
            shutil.copyfile(self.base.libraries, scratch.name)
            with tarfile.open(scratch.name, mode="a") as layer:
                archives.add_file(layer, self.binaries.path("envoy"), "usr/local/bin/envoy")
            archives.write(target, reference=self.reference("envoy"), layer=Path(scratch.name), config=config)


@dataclass(frozen=True)
class Store:
    """containerd's image store inside the running node."""

    node: Node

    def answers(self) -> bool:
        """Whether containerd serves."""
        try:
            self.node.run([*CTR, "version"], timeout=5)
        except CommandError:
            return False
        return True

    def references(self) -> set[str]:
        """The images in the store."""
        return set(self.node.run([*CTR, "images", "ls", "-q"]).split())

    def load(self, archive: Path) -> None:
        """Import a docker-archive or OCI archive."""
        self.node.run([*CTR, "images", "import", str(archive)], timeout=600)

    def load_missing(self, images: list[LocalImage], *, scratch: Path) -> list[str]:
        """Write and import the images that are not in the store; return their names."""
        present = self.references()
        missing = [image for image in images if image.reference not in present]
        for image in missing:
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                archive = Path(folder) / "image.tar"
                image.write(archive)
                self.load(archive)
        return [image.reference for image in missing]

    def forget_containers(self) -> None:
        """Remove what a killed node left in the store's books; the processes are long gone."""
        for container in self.node.run([*CTR, "containers", "ls", "-q"]).split():
            self.node.run([*CTR, "containers", "rm", container])

    def digest(self, reference: str) -> str:
        """The digest of an image's manifest, `sha256:…`."""
        listed = self.node.run([*CTR, "images", "ls", f"name=={reference}"]).splitlines()[1:]
        return next(word for line in listed for word in line.split() if word.startswith("sha256:"))

    def remove(self, reference: str) -> None:
        """Take a name from the store; content that no name holds is collected."""
        self.node.run([*CTR, "images", "rm", reference])

    def tag(self, reference: str, alias: str) -> None:
        """Give an image a second name, taking it from another image if need be."""
        self.node.run([*CTR, "images", "tag", "--force", reference, alias])


def _command(name: str) -> str:
    return name.removeprefix("knative-")
