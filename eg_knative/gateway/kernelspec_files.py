"""One kernelspec directory: reading it, checking it, and noticing that it changed. Blocking; the index calls it in a thread.

What is wrong with a `kernel.json` ends up in its entry, as a sentence that names the file, the field and the remedy.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpec
from traitlets import TraitError

from eg_knative.errors import ConfigurationError
from eg_knative.specification import KernelSpecification, parse_specification

SIZE_LIMIT = 1024 * 1024
"""Bytes of a kernel.json; a larger one is not read."""

PROXY_PACKAGE = "eg_knative.processproxies."
"""Kernelspecs whose process proxy lives here are ours; the others are left to EG."""

Signature = tuple[tuple[str, str, int, int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelspecEntry:
    """One kernelspec. `kernel_spec`: jupyter_client's object. `specification` is None for kernels of other process proxies.
    `error`: why it cannot be used."""

    name: str
    resource_dir: str
    document: Mapping[str, Any]
    kernel_spec: Any = None
    resources: tuple[str, ...] = ()
    specification: KernelSpecification | None = None
    error: ConfigurationError | None = None

    @property
    def proxy_config(self) -> Mapping[str, Any]:
        """`metadata.process_proxy.config`, or an empty mapping."""
        proxy = self.document.get("metadata", {}).get("process_proxy", {})
        config = proxy.get("config", {}) if isinstance(proxy, Mapping) else {}
        return config if isinstance(config, Mapping) else {}


def proxy_class_name(document: Mapping[str, Any]) -> str:
    """`metadata.process_proxy.class_name`, or an empty string."""
    proxy = document.get("metadata", {}).get("process_proxy", {})
    return str(proxy.get("class_name", "")) if isinstance(proxy, Mapping) else ""


def load_entry(*, name: str, resource_dir: str, python: str) -> KernelspecEntry:
    """Read and check one kernelspec directory. What is wrong with it is in the entry; nothing is raised."""
    document: Mapping[str, Any] = {}
    path = os.path.join(resource_dir, "kernel.json")
    try:
        document = _read(path, native=name == NATIVE_KERNEL_NAME)
        specification = None
        if proxy_class_name(document).startswith(PROXY_PACKAGE):
            specification = parse_specification(name=name, document=document, resource_dir=resource_dir, python=python)
        resources = tuple(sorted(file for file in os.listdir(resource_dir) if _is_resource(file)))
        kernel_spec = _kernel_spec(resource_dir, document)
    except ConfigurationError as error:
        told = ConfigurationError(
            f"Kernelspec '{name}' ({path}) is broken: {error.message}", field=error.field, reason="bad_kernelspec"
        )
        return KernelspecEntry(name=name, resource_dir=resource_dir, document=document, error=told)
    return KernelspecEntry(
        name=name,
        resource_dir=resource_dir,
        document=document,
        kernel_spec=kernel_spec,
        resources=resources,
        specification=specification,
    )


def _kernel_spec(resource_dir: str, document: Mapping[str, Any]) -> Any:
    known = {key: value for key, value in document.items() if KernelSpec.class_traits().get(key) is not None}
    try:
        return KernelSpec(**{**known, "resource_dir": resource_dir})
    except TraitError as error:
        raise ConfigurationError(f"{error} Correct the value.") from error


def _read(path: str, *, native: bool) -> Mapping[str, Any]:
    if native and not os.path.exists(path):
        # ipykernel's own resources: jupyter_client makes the document up when no python3 is installed.
        from ipykernel.kernelspec import get_kernel_dict

        made_up: Mapping[str, Any] = get_kernel_dict()
        return made_up
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE_LIMIT + 1)
        if len(content) > SIZE_LIMIT:
            raise ConfigurationError("the file is larger than 1 MiB. Put large data beside it.")
        document = json.loads(content.decode("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"the file cannot be read ({error.strerror}). Check its permissions.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError("the file is not UTF-8. Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConfigurationError(f"the file is not JSON: {error.msg} in {where}. Correct it there.") from error
    except RecursionError as error:
        raise ConfigurationError("the file is nested too deeply.") from error
    if not isinstance(document, dict):
        raise ConfigurationError("the file is not a JSON object. Write it as {…}.")
    argv = document.get("argv")
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        raise ConfigurationError("argv is not a list of strings. Give the kernel's command.", field="argv")
    for key in ("env", "metadata"):
        if not isinstance(document.get(key, {}), dict):
            raise ConfigurationError(f"{key} is not an object. Write it as {{…}}.", field=key)
    return document


def _is_resource(file: str) -> bool:
    return file in {"kernel.js", "kernel.css"} or file.startswith("logo-")


def signature_of(directory: str) -> Signature:
    """Names, identities, sizes and times of the directory's files; follows symlinks, so a ConfigMap's swap of `..data` is
    seen."""
    parts = []
    try:
        for file in sorted(os.listdir(directory)):
            if file == "kernel.json" or _is_resource(file):
                stat = os.stat(os.path.join(directory, file))
                parts.append((directory, file, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    except OSError:
        if not parts:
            return ()
    return tuple(parts)


def shipped_directories(package: Path) -> Sequence[str]:
    """Where this project's own kernelspecs lie beside `package` (the eg_knative directory): in a checkout, and nowhere else.

    An installed wheel puts them in `share/jupyter/kernels` of its environment, where Jupyter looks anyway.
    """
    checkout = package.parent
    kernelspecs = checkout / "kernelspecs"
    if (checkout / "setup.cfg").is_file() and kernelspecs.is_dir():
        return (str(kernelspecs),)
    return ()
