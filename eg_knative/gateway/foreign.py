"""Starting a kernel of one of EG's own process proxies, with the same promises to its user as ours make.

EG's kernel manager does the work. Here it gets an environment of its own, and what it raises becomes an error that says what
to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jupyter_server.prometheus.metrics import KERNEL_CURRENTLY_RUNNING_TOTAL
from tornado import web

from eg_knative.errors import EgKnativeError, LaunchError
from eg_knative.gateway.environment import BASE_VARIABLES
from eg_knative.gateway.kernelspec_files import KernelspecEntry


async def start_foreign(
    kernels: Any,
    *,
    kernel_id: str,
    entry: KernelspecEntry,
    env: Mapping[str, str],
    path: str | None,
    headers: Mapping[str, str],
) -> None:
    """Start the kernel and enter it in `kernels` (a mapping kernel manager). Raises LaunchError or EG's HTTPError."""
    manager = kernels.kernel_manager_factory(
        connection_file=os.path.join(kernels.connection_dir, f"kernel-{kernel_id}.json"),
        kernel_name=entry.name,
        kernel_spec_manager=kernels.kernel_spec_manager,
        log=kernels.log,
        parent=kernels,
    )
    manager.username = env["KERNEL_USERNAME"]
    base = {name: os.environ[name] for name in BASE_VARIABLES if name in os.environ}
    arguments: dict[str, Any] = {"env": {**base, **env}, "kernel_headers": dict(headers)}
    if path is not None:
        arguments["cwd"] = kernels.cwd_for_path(path)
    try:
        await manager.start_kernel(**arguments)
    except (EgKnativeError, web.HTTPError):
        manager.cleanup_connection_file()
        raise
    except (OSError, RuntimeError, ValueError) as error:
        manager.cleanup_connection_file()
        raise LaunchError(
            f"Kernel '{entry.name}' could not be started: {error}. Ask the operator to check its kernelspec."
        ) from error
    kernels._kernels[kernel_id] = manager
    kernels._kernel_connections[kernel_id] = 0
    kernels._kernel_ports[kernel_id] = manager.ports
    kernels.start_watching_activity(kernel_id)
    kernels.add_restart_callback(kernel_id, lambda: kernels._handle_kernel_died(kernel_id), "dead")
    KERNEL_CURRENTLY_RUNNING_TOTAL.labels(type=entry.name).inc()
    kernels.parent.kernel_session_manager.create_session(kernel_id, kernel_name=entry.name, **arguments)
