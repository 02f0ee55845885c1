"""The base of the project's images on a machine that can pull none: the content of `python:3.11-slim`, by debootstrap.

Debian's own Python 3.11, with `python` and `pip` in /usr/local as the official image has them, so that an ordinary
Dockerfile cannot tell the difference. Packages are what the mirror serves on the day of the first build.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from testcluster import archives, host, pins, shell
from testcluster.layout import REGISTRY, Layout
from testcluster.steps import Step

_INCLUDE = ("ca-certificates", "netbase", "python3", "python3-venv", "tzdata")
# A virtual environment in /usr/local: its pip may install there, where Debian's own refuses to touch the system's.
# Interpreter names follow, and the parts of a distribution that no container reads go.
_FINISH = """
set -e
python3 -m venv --copies /usr/local
rm -f /usr/local/bin/activate* /usr/local/bin/Activate.ps1
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
rm -rf /var/log/*.log /var/log/apt
find / -xdev -name __pycache__ -prune -exec rm -rf {} +
cd /
tar -chf libraries.tar lib*/ld-linux* lib/*/libc.so.* lib/*/libm.so.* lib/*/librt.so.* lib/*/libdl.so.* lib/*/libpthread.so.*
"""


@dataclass(frozen=True)
class BaseImage:
    """The archive of the base image in the cache."""

    layout: Layout

    @property
    def key(self) -> str:
        """Changes with the release and the recipe."""
        return pins.digest(pins.debian_release().encode(), " ".join(_INCLUDE).encode(), _FINISH.encode())

    @property
    def reference(self) -> str:
        """What BASE_IMAGE is set to."""
        return f"{REGISTRY}/eg-knative/base:{self.key}"

    @property
    def archive(self) -> Path:
        """The docker-archive."""
        return self.layout.cache / "base" / f"base-{self.key}.tar"

    @property
    def libraries(self) -> Path:
        """A tar file of the base image's C library, for a program that is not static."""
        return self.archive.with_name(f"libraries-{self.key}.tar")

    def step(self) -> Step:
        """The step that makes it."""
        return Step("bootstrap the base image", self.archive.exists, self._make)

    def _make(self) -> None:
        folder = self.archive.parent
        downloads = folder / "debs"  # so that an interrupted bootstrap does not download again
        downloads.mkdir(parents=True, exist_ok=True)
        log = self.layout.logs / "debootstrap.log"
        with tempfile.TemporaryDirectory(dir=folder, prefix="root-") as scratch:
            root = Path(scratch) / "root"
            words = ["debootstrap", "--variant=minbase", f"--include={','.join(_INCLUDE)}", f"--cache-dir={downloads}"]
            words += [pins.debian_release(), str(root)]
            mirror = host.debian_mirror()
            # The archive's key is fixed here so that a host of another distribution checks signatures too.
            words.insert(1, "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg")
            shell.run(shell.guarded([*words, mirror] if mirror else words), log=log, name="debootstrap")
            shell.run(shell.guarded(["chroot", str(root), "/bin/sh", "-c", _FINISH]), name="finishing the base image")
            (root / "libraries.tar").rename(self.libraries)
            layer = Path(scratch) / "layer.tar"
            shell.run(["tar", "--numeric-owner", "--sort=name", "-C", root, "-cf", layer, "."], name="tar")
            fresh = Path(scratch) / "base.tar"
            archives.write(fresh, reference=self.reference, layer=layer, config=_CONFIG)
            fresh.rename(self.archive)
        shutil.rmtree(downloads, ignore_errors=True)


_CONFIG = archives.ImageConfig(
    command=("python3",),
    environment=("PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"),
)
