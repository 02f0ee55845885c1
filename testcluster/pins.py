"""Reads what `pins/` fixes: the one place where a version of the test cluster is written down.

Go modules are pinned by go.mod and go.sum, PyPI and Debian by a text file each. This module knows how to read them and
how to make the keys under which results are cached; it downloads nothing.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from testcluster.errors import ClusterError
from testcluster.layout import PINS

GO_MODULES = ("kubernetes", "serving", "kourier", "coredns")


@dataclass(frozen=True)
class GoModule:
    """One of our Go modules: its `tool` lines name the commands to build."""

    name: str
    folder: Path

    @cached_property
    def _text(self) -> str:
        return (self.folder / "go.mod").read_text()

    @property
    def tools(self) -> tuple[str, ...]:
        """Import paths of the commands."""
        block = re.search(r"^tool \((.*?)^\)", self._text, re.MULTILINE | re.DOTALL)
        if block:
            return tuple(block.group(1).split())
        return tuple(re.findall(r"^tool (\S+)$", self._text, re.MULTILINE))

    def version(self, path: str) -> str:
        """The version of a required module, with its leading v."""
        found = re.search(rf"^(?:require )?\s*{re.escape(path)} (v\S+)", self._text, re.MULTILINE)
        if not found:
            raise ClusterError(f"{self.folder / 'go.mod'} does not require {path}; run `go mod tidy` there")
        return found.group(1)

    def key(self, *extra: str) -> str:
        """Changes whenever a build of this module could give something else."""
        parts = [(self.folder / name).read_bytes() for name in ("go.mod", "go.sum")]
        return digest(*parts, *(word.encode() for word in extra))


@dataclass(frozen=True)
class DebianPackage:
    """A package of the host and the file that shows that it is installed."""

    file: Path
    name: str


def go_module(name: str, *, pins: Path = PINS) -> GoModule:
    """One of GO_MODULES."""
    return GoModule(name=name, folder=pins / name)


def debian_release(*, pins: Path = PINS) -> str:
    """The Debian release of the base image."""
    return next(line.split()[1] for line in _lines(pins / "debian.txt") if line.startswith("release "))


def debian_packages(*, pins: Path = PINS) -> tuple[DebianPackage, ...]:
    """What the host needs from Debian."""
    pairs = (line.split() for line in _lines(pins / "debian.txt") if line.startswith("/"))
    return tuple(DebianPackage(file=Path(file), name=name) for file, name in pairs)


def pypi_version(name: str, *, pins: Path = PINS) -> str:
    """The pinned version of a PyPI project."""
    for line in _lines(pins / "pypi.txt"):
        project, _, version = line.partition("==")
        if project == name:
            return version
    raise ClusterError(f"{pins / 'pypi.txt'} does not pin {name}")


def digest(*parts: bytes) -> str:
    """A short content key; the length of each part counts, so that parts cannot run into each other."""
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big"))
        total.update(part)
    return total.hexdigest()[:12]


def tree_digest(paths: Iterable[Path], *, base: Path) -> str:
    """A content key of files and folders: names below `base`, run bits and bytes, but no times."""
    parts: list[bytes] = []
    for path in sorted(_files(paths)):
        parts.append(str(path.relative_to(base)).encode())
        parts.append(b"x" if path.stat().st_mode & 0o100 else b"-")
        parts.append(path.read_bytes())
    return digest(*parts)


def _files(paths: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found |= {file for file in path.rglob("*") if file.is_file() and not _passing(file)}
        elif path.is_file():
            found.add(path)
    return found


def _passing(file: Path) -> bool:
    """Files that come and go with running the code, not with changing it."""
    return "__pycache__" in file.parts or any(part.endswith(".egg-info") for part in file.parts)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
