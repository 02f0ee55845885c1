"""PooledProcessProxy: a kernelspec that names it gets kernels that run already.

Name it in `kernel.json` as `metadata.process_proxy.class_name`: `eg_knative.processproxies.pooled.PooledProcessProxy`. It
works in `jupyter egknative` and in stock `jupyter enterprisegateway`; in the latter the first proxy of the process builds the
runtime, and a pool begins to fill when its kernelspec is first used.
"""

from __future__ import annotations

import asyncio
import getpass
import uuid
import weakref
from typing import Any

from eg_knative.errors import LaunchError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.processproxies.base import GRACE_SECONDS, ClaimProxy, background, launch_timeout_of
from eg_knative.processproxies.configuration import EgKnativeConfiguration
from eg_knative.runtime import Runtime
from eg_knative.specification import KernelSpecification
from eg_knative.wire.control import ClaimRequest

_served_in_stock: weakref.WeakKeyDictionary[Runtime, dict[str, KernelSpecification]] = weakref.WeakKeyDictionary()
"""Stock Enterprise Gateway does not say which kernelspecs there are: those that were asked for are kept warm from then on."""


def _end_with(application: Any, runtime: Runtime) -> None:
    """Close the runtime when stock Enterprise Gateway ends, after the kernels that it knows.

    It has no hook for that; its `shutdown`, called once when its event loop has stopped, is wrapped on this one instance.
    """
    original = application.shutdown
    loop = asyncio.get_running_loop()

    def shutdown() -> None:
        original()
        loop.run_until_complete(background.close(timeout=GRACE_SECONDS))
        loop.run_until_complete(runtime.close(shut_down_kernels=True))

    application.shutdown = shutdown


class PooledProcessProxy(ClaimProxy):
    """Claims a ready member of the kernelspec's pool, or has one started when there is none."""

    async def claim(self, env: dict[str, str], *, working_directory: str | None) -> ClaimedKernel:
        """See ClaimProxy. `env` is what the request may set; the kernelspec's own is below it already."""
        manager = self.kernel_manager
        username = env.get("KERNEL_USERNAME") or getpass.getuser()
        self.authorize(username)
        runtime = await self._runtime()
        specification = self._specification(runtime)
        default = specification.launch_timeout_seconds or runtime.settings.launch_timeout_seconds
        request = ClaimRequest(
            claim_id=uuid.uuid4().hex,
            kernel_id=self.kernel_id,
            kernel_name=manager.kernel_name,
            username=username,
            env=self.identity(env, username=username),
            working_directory=working_directory,
            attributes={},
        )
        timeout = launch_timeout_of(env, default=default)
        try:
            return await runtime.pool.claim(request, specification=specification, timeout=timeout)
        except LaunchError as error:
            if specification.name in error.message:
                raise
            message = f"Kernel '{specification.name}' could not be started: {error.message}"
            raise type(error)(message, field=error.field, reason=error.reason) from error

    async def adopted(self) -> ClaimedKernel | None:
        """See ClaimProxy."""
        return (await self._runtime()).pool.kernels.get(self.kernel_id)

    async def _runtime(self) -> Runtime:
        current = Runtime.current()
        if current is None:
            application = getattr(getattr(self.kernel_manager, "parent", None), "parent", None)
            current = Runtime.get_or_create(EgKnativeConfiguration(parent=application).settings())
            if application is not None:
                _end_with(application, current)
        await current.open()
        return current

    def _specification(self, runtime: Runtime) -> KernelSpecification:
        manager = self.kernel_manager
        known: KernelSpecification | None = getattr(manager, "specification", None)
        if known is not None:
            return known
        spec = manager.kernel_spec
        specification = runtime.specification_for(manager.kernel_name, spec.to_dict(), spec.resource_dir)
        served = _served_in_stock.setdefault(runtime, {})
        if served.get(specification.name) != specification:
            served[specification.name] = specification
            runtime.pool.set_specifications(dict(served))
        return specification
