"""jupyter_client's and Enterprise Gateway's two classes for kernelspecs, answered from the index.

Both are called synchronously on the event loop, once for each kernel and request; with these they read memory. The classes stay
configurable as EG's are: whoever sets another `kernel_spec_manager_class` gets its directories, looked at in the same way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from enterprise_gateway.services.kernelspecs import KernelSpecCache
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, KernelSpecManager, NoSuchKernel, _list_kernels_in

import eg_knative
from eg_knative.gateway.kernelspec_files import KernelspecEntry, shipped_directories
from eg_knative.gateway.kernelspec_index import KernelspecIndex


class IndexedKernelSpecManager(KernelSpecManager):  # type: ignore[misc]  # jupyter_client has no types
    """Jupyter's directories and, in a checkout, the shipped one behind the user's; kernelspecs from the index once there is
    one."""

    index: KernelspecIndex | None = None

    def _kernel_dirs_default(self) -> list[str]:
        found: list[str] = super()._kernel_dirs_default()
        shipped = [path for path in shipped_directories(Path(eg_knative.__file__).parent) if path not in found]
        own = os.path.join(sys.prefix, "share", "jupyter", "kernels")  # may hold copies that an editable install left
        at = found.index(own) if own in found else len(found)
        return [*found[:at], *shipped, *found[at:]]

    def find_kernel_specs(self) -> dict[str, str]:
        """Name to directory, earlier directories first; jupyter_client's, without a line in the log for each at every look."""
        found: dict[str, str] = {}
        for directory in self.kernel_dirs:
            for name, path in _list_kernels_in(directory).items():
                found.setdefault(name, path)
        if self.ensure_native_kernel and NATIVE_KERNEL_NAME not in found:
            with contextlib.suppress(ImportError):
                from ipykernel.kernelspec import RESOURCES

                found[NATIVE_KERNEL_NAME] = RESOURCES
        return {name: path for name, path in found.items() if not self.whitelist or name in self.whitelist}

    def get_kernel_spec(self, kernel_name: str) -> Any:
        """From memory. Raises NoSuchKernel. Before the index is there: from disk."""
        if self.index is None:
            return super().get_kernel_spec(kernel_name)
        entry = self.index.usable.get(kernel_name) or self.index.usable.get(kernel_name.lower())
        if entry is None:
            raise NoSuchKernel(kernel_name)
        return entry.kernel_spec

    def get_all_specs(self) -> dict[str, Any]:
        """From memory, as jupyter_client shapes it."""
        if self.index is None:
            specs: dict[str, Any] = super().get_all_specs()
            return specs
        return {
            name: {"resource_dir": entry.resource_dir, "spec": entry.kernel_spec.to_dict()}
            for name, entry in self.index.usable.items()
        }


class IndexedKernelSpecCache(KernelSpecCache):  # type: ignore[misc]  # EG has no types
    """EG's cache without a cache of its own: no observer thread, and no directory that it forgets to watch."""

    def _initialize(self) -> None:
        self.cache_enabled = False
        super()._initialize()

    async def get_kernel_spec(self, kernel_name: str) -> Any:
        """From memory. Raises NoSuchKernel, which is a KeyError."""
        return self.kernel_spec_manager.get_kernel_spec(kernel_name)

    async def get_all_specs(self) -> dict[str, Any]:
        """From memory."""
        specs: dict[str, Any] = self.kernel_spec_manager.get_all_specs()
        return specs


def rest_model(entry: KernelspecEntry, *, base_url: str) -> dict[str, Any]:
    """What GET /api/kernelspecs says of one kernelspec."""
    resources: dict[str, str] = {}
    root = base_url.rstrip("/")
    for file in entry.resources:
        key = file if file.startswith("kernel.") else file.rsplit(".", 1)[0]
        resources[key] = f"{root}/kernelspecs/{entry.name}/{file}"
    spec: Mapping[str, Any] = entry.kernel_spec.to_dict()
    return {"name": entry.name, "spec": spec, "resources": resources}
