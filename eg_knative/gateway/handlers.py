"""EG's REST for kernels and kernelspecs, mended: each request carries its own environment, and errors say what to do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from enterprise_gateway.services.kernels import handlers as eg_kernels
from enterprise_gateway.services.kernelspecs import handlers as eg_kernelspecs
from jupyter_server.services.kernels import handlers as jupyter_kernels
from tornado import web

from eg_knative.errors import UnknownKernelspecError
from eg_knative.gateway.kernels import GatewayKernels
from eg_knative.gateway.kernelspec_files import KernelspecEntry
from eg_knative.gateway.kernelspec_index import KernelspecIndex
from eg_knative.gateway.kernelspecs import rest_model
from eg_knative.gateway.requests import GatewayHandler, mended, permitted
from eg_knative.processproxies.authorization import is_authorized
from eg_knative.processproxies.http import ReasonedHTTPError

FRESH_SECONDS = 0.25
"""A listing looks at the disk first when the last look is older; in a thread, shared by all who ask meanwhile."""


def require_listing(settings: dict[str, Any]) -> None:
    """Raises 403 when the operator has switched listing off (EG_LIST_KERNELS)."""
    if not settings.get("eg_list_kernels"):
        raise ReasonedHTTPError(
            403, reason="listing_disabled", message="This gateway does not list kernels (EG_LIST_KERNELS is False)."
        )


class MainKernelHandler(GatewayHandler, eg_kernels.MainKernelHandler):  # type: ignore[misc]  # EG has no types
    """POST and GET /api/kernels."""

    _start: asyncio.Task[str] | None = None

    @permitted
    async def post(self) -> None:
        """Start a kernel: `{"name", "env", "path"}`, all optional."""
        body = self.get_json_object()
        kernels: GatewayKernels = self.kernel_manager
        self._start = asyncio.ensure_future(
            kernels.start_kernel(
                kernel_name=body.get("name"),
                path=body.get("path"),
                env=body.get("env"),
                kernel_headers=self._build_kernel_headers(),
            )
        )
        try:
            kernel_id = await self._start
        except asyncio.CancelledError:
            raise ReasonedHTTPError(499, reason="client_gone", message="The client went away; the launch was stopped.") from None
        self.set_status(201)
        self.set_header("Location", f"{self.settings['base_url'].rstrip('/')}/api/kernels/{kernel_id}")
        self.finish(json.dumps(kernels.kernel_model(kernel_id)))

    def on_connection_close(self) -> None:
        """Nobody waits for the kernel any more: the launch stops, and what was made for it goes."""
        if self._start is not None:
            self._start.cancel()
        super().on_connection_close()

    @permitted
    async def get(self) -> None:
        """List the kernels."""
        require_listing(self.settings)
        self.finish(json.dumps(self.kernel_manager.list_kernels()))


class KernelHandler(GatewayHandler, eg_kernels.KernelHandler):  # type: ignore[misc]
    """GET and DELETE /api/kernels/<id>."""

    @permitted
    async def get(self, kernel_id: str) -> None:
        """One kernel."""
        self.finish(json.dumps(self.kernel_manager.kernel_model(kernel_id)))

    @permitted
    async def delete(self, kernel_id: str) -> None:
        """End a kernel; answered when it is gone."""
        self.kernel_manager.check_kernel_id(kernel_id)
        await self.kernel_manager.shutdown_kernel(kernel_id)
        self.set_status(204)
        self.finish()


class KernelActionHandler(GatewayHandler, jupyter_kernels.KernelActionHandler):  # type: ignore[misc]
    """POST /api/kernels/<id>/interrupt and …/restart. jupyter_server's answers a failed restart with a traceback."""

    @permitted
    async def post(self, kernel_id: str, action: str) -> None:
        """Interrupt (204) or restart (200 and the model)."""
        self.kernel_manager.check_kernel_id(kernel_id)
        if action == "interrupt":
            await self.kernel_manager.interrupt_kernel(kernel_id)
            self.set_status(204)
            self.finish()
        else:
            await self.kernel_manager.restart_kernel(kernel_id)
            self.finish(json.dumps(self.kernel_manager.kernel_model(kernel_id)))


class _KernelspecHandler(GatewayHandler, eg_kernelspecs.APIHandler):  # type: ignore[misc]
    @property
    def index(self) -> KernelspecIndex:
        """The kernelspecs in memory."""
        index: KernelspecIndex = self.settings["egknative_kernelspecs"]
        return index

    def shown(self, entry: KernelspecEntry) -> bool:
        """May `?user=` see the kernelspec? Everybody may when no user is named."""
        user = self.get_query_argument("user", "")
        return not user or is_authorized(
            user,
            config=entry.proxy_config,
            authorized=self.settings["eg_authorized_users"],
            unauthorized=self.settings["eg_unauthorized_users"],
        )


class MainKernelSpecHandler(_KernelspecHandler):
    """GET /api/kernelspecs."""

    @web.authenticated
    async def get(self) -> None:
        """All kernelspecs, from memory."""
        await self.index.refresh(older_than=FRESH_SECONDS)
        base_url = self.settings["base_url"]
        specs = {name: rest_model(entry, base_url=base_url) for name, entry in self.index.usable.items() if self.shown(entry)}
        self.finish(json.dumps({"default": self.kernel_manager.default_kernel_name, "kernelspecs": specs}))


class KernelSpecHandler(_KernelspecHandler):
    """GET /api/kernelspecs/<name>."""

    @web.authenticated
    async def get(self, kernel_name: str) -> None:
        """One kernelspec."""
        entry = await self.index.lookup(kernel_name)
        if not self.shown(entry):
            raise UnknownKernelspecError(f"There is no kernelspec '{kernel_name[:100]}' for this user.", field="name")
        self.finish(json.dumps(rest_model(entry, base_url=self.settings["base_url"])))


_KERNEL_ID = jupyter_kernels._kernel_id_regex
_KERNEL_NAME = eg_kernelspecs.kernel_name_regex

kernel_handlers: list[tuple[str, type[Any]]] = [
    (r"/api/kernels", MainKernelHandler),
    (rf"/api/kernels/{_KERNEL_ID}", KernelHandler),
    (rf"/api/kernels/{_KERNEL_ID}/{jupyter_kernels._kernel_action_regex}", KernelActionHandler),
]

kernelspec_handlers: list[tuple[str, type[Any]]] = [
    (r"/api/kernelspecs", MainKernelSpecHandler),
    (rf"/api/kernelspecs/{_KERNEL_NAME}", KernelSpecHandler),
    (rf"/kernelspecs/{_KERNEL_NAME}/(?P<path>.*)", mended(eg_kernelspecs.KernelSpecResourceHandler)),
]
