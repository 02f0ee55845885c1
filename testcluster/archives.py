"""Writes container images directly, as docker-archive files: one layer, no container engine, nothing run.

Enough for a static program or an unpacked root file system; images with steps to run are built by buildah (builds.py).
Bytes depend on the content only, so the same content is the same image.
"""

import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 20
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # what images call them


@dataclass(frozen=True)
class ImageConfig:
    """What the image says about running it."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
    user: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def write(target: Path, *, reference: str, layer: Path, config: ImageConfig) -> None:
    """Write a docker-archive of one layer (a plain tar file) under this reference."""
    diff_id = _sha256(layer)
    body = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": list(config.entrypoint) or None,
            "Cmd": list(config.command) or None,
            "Env": list(config.environment),
            "User": config.user,
            "Labels": config.labels or None,
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "testcluster"}],
    }
    encoded = json.dumps(body, sort_keys=True).encode()
    name = hashlib.sha256(encoded).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [reference], "Layers": [f"{diff_id}.tar"]}]
    with tarfile.open(target, "w") as archive:
        add_bytes(archive, f"{name}.json", encoded)
        archive.add(layer, arcname=f"{diff_id}.tar", filter=_plain)
        add_bytes(archive, "manifest.json", json.dumps(manifest).encode())


def write_layer(target: Path, *, reference: str, config: ImageConfig, fill: Callable[[tarfile.TarFile], None]) -> None:
    """Like `write`, with a layer that `fill` puts together."""
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".layer") as scratch:
        with tarfile.open(fileobj=scratch, mode="w") as layer:
            fill(layer)
        scratch.flush()
        write(target, reference=reference, layer=Path(scratch.name), config=config)


def add_file(layer: tarfile.TarFile, source: Path, name: str, *, mode: int = 0o755) -> None:
    """Add a file owned by root, whatever it is on this machine; a symbolic link is followed."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = source.stat().st_size, mode
    with source.open("rb") as content:
        layer.addfile(info, content)


def add_bytes(layer: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    """Add a file of these bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    layer.addfile(info, io.BytesIO(content))


def add_folder(layer: tarfile.TarFile, name: str, *, mode: int = 0o755) -> None:
    """Add an empty folder."""
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    layer.addfile(info)


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode = 0, 0, 0, "", "", 0o644
    return info


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()
