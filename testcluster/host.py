"""What the machine must have before anything is built, and the part of it that `up` can install.

It checks, it installs Debian packages when it may, and otherwise says in one line what to do. It changes no
configuration of the host.
"""

import os
import shutil
import sys
from pathlib import Path

from testcluster import pins, shell
from testcluster.errors import CommandError, UnsupportedMachineError

_GO_NEEDED = (1, 25)


def check(*, root: bool = True) -> None:
    """Raise UnsupportedMachineError with the remedy if this machine cannot run the cluster at all."""
    if sys.platform != "linux":
        raise UnsupportedMachineError(
            "the test cluster needs Linux: run it in a Linux VM, or set KUBECONFIG to a cluster of your own"
        )
    if root and os.geteuid() != 0:
        raise UnsupportedMachineError(
            "the test cluster needs root: run `sudo -E scripts/cluster …`, or set KUBECONFIG to a cluster of your own"
        )


def check_go() -> None:
    """Raise unless a Go that is new enough is on PATH; only asked for when there is something to compile."""
    try:
        words = shell.run(["go", "env", "GOVERSION"]).strip().removeprefix("go").split(".")
        version = (int(words[0]), int(words[1]))
    except (CommandError, ValueError, IndexError):
        version = (0, 0)
    if version < _GO_NEEDED:
        needed = ".".join(map(str, _GO_NEEDED))
        raise UnsupportedMachineError(f"the test cluster is compiled once with Go {needed} or newer: put `go` on PATH")


def missing_packages() -> tuple[str, ...]:
    """Names of the Debian packages whose file is not there."""
    return tuple(package.name for package in pins.debian_packages() if not package.file.exists())


def install_packages(names: tuple[str, ...]) -> None:
    """Install Debian packages, or say how to."""
    wanted = " ".join(names)
    if not shutil.which("apt-get"):
        raise UnsupportedMachineError(f"install what this distribution calls the Debian packages {wanted}, then try again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *names]
    try:
        shell.run(["apt-get", "update", "-qq"], env=environment)
        shell.run(install, env=environment)
    except CommandError as error:
        raise UnsupportedMachineError(f"apt-get could not install {wanted}: {error}") from error


def debian_mirror() -> str | None:
    """The mirror that this host's own apt uses for the base image's release; None leaves it to debootstrap."""
    if not shutil.which("apt-get"):
        return None
    wanted = ["apt-get", "indextargets", "--format", "$(CODENAME) $(COMPONENT) $(ORIGIN) $(REPO_URI)"]
    try:
        lines = shell.run([*wanted, "Created-By: Packages"]).splitlines()
    except CommandError:
        return None
    for line in lines:
        codename, component, origin, *uri = line.split(" ")
        if (codename, component, origin) == (pins.debian_release(), "main", "Debian") and uri:
            return uri[0]
    return None


def certificate_bundle() -> Path | None:
    """The host's trusted certificates, for `pip` inside image builds behind a host that trusts an authority of its own."""
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    return bundle if bundle.is_file() else None
