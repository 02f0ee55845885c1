"""All kernels of the gateway: EG's mapping kernel manager, with warm kernels beside those of EG's own process proxies.

A start asks the kernelspec index (memory), decides the environment, the user and the limits, and only then makes anything.
Each request has its own environment from here down; nothing shared is changed on its behalf. What is not ours
(LocalProcessProxy and the like) goes through EG's own kernel manager as before.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import zmq
from enterprise_gateway.services.kernels.remotemanager import RemoteMappingKernelManager, import_item
from jupyter_client.kernelspec import KernelSpec

from eg_knative.errors import BadRequestError, ChannelError, DuplicateKernelError
from eg_knative.gateway.admission import require_directory, require_room
from eg_knative.gateway.environment import EnvironmentPolicy, kernel_environment, require_kernel_id
from eg_knative.gateway.foreign import start_foreign
from eg_knative.gateway.kernelspec_files import KernelspecEntry, proxy_class_name
from eg_knative.gateway.kernelspec_index import KernelspecIndex
from eg_knative.gateway.managed_kernel import ManagedKernel
from eg_knative.gateway.relay import KernelRelay
from eg_knative.gateway.relays import Relays
from eg_knative.gateway.warm_kernel import WarmKernelManager, utc_now
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import KernelEvent
from eg_knative.processproxies.authorization import require_authorized
from eg_knative.processproxies.http import ReasonedHTTPError
from eg_knative.processproxies.pooled import PooledProcessProxy

SHUTDOWN_TIMEOUT = 15.0
"""Seconds for all kernels together when the gateway ends; what is left then is left to the launchers' own time limits."""

MAXIMUM_SOCKETS = 16_384
"""ZeroMQ sockets of the shared context. libzmq's default, 1,023, is four for each connected kernel too few for a large
gateway."""

log = logging.getLogger(__name__)


class GatewayKernels(RemoteMappingKernelManager):  # type: ignore[misc]  # EG has no types
    """The mapping kernel manager of `jupyter egknative`. The application sets `index` and `relays` before the first request."""

    index: KernelspecIndex
    relays: Relays
    on_kernel_event: Callable[[KernelEvent], None] = staticmethod(lambda event: None)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._starting: dict[str, str] = {}

    def _context_default(self) -> zmq.Context[Any]:
        context: zmq.Context[Any] = super()._context_default()
        if not os.environ.get("EG_ZMQ_MAX_SOCKETS"):
            context.set(zmq.MAX_SOCKETS, MAXIMUM_SOCKETS)
        return context

    @property
    def policy(self) -> EnvironmentPolicy:
        """The operator's word on environments; the options may change while the gateway runs (dynamic configuration)."""
        app = self.parent
        return EnvironmentPolicy.build(client=app.client_envs, inherited=app.inherited_envs, environ=os.environ)

    async def start_kernel(
        self,
        kernel_id: str | None = None,
        path: str | None = None,
        *,
        kernel_name: str | None = None,
        env: Any = None,
        kernel_headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> str:
        """Start one kernel and return its id. `env`: the request's, unchecked.

        Raises EgKnativeError or tornado's HTTPError; either way nothing is left of the attempt.
        """
        if kernel_name is not None and not isinstance(kernel_name, str):
            raise BadRequestError("name is not a string. Give a kernelspec's name.", field="name")
        if path is not None and (not isinstance(path, str) or "\0" in path):
            raise BadRequestError("path is not a string without NUL. Correct or omit it.", field="path")
        entry = await self.index.lookup(kernel_name or self.default_kernel_name)
        allowed = entry.specification.environment_allow if entry.specification is not None else ()
        environment = kernel_environment(env, policy=self.policy, specification=allowed)
        kernel_id = require_kernel_id(kernel_id) if kernel_id else environment.get("KERNEL_ID") or str(uuid.uuid4())
        username = environment.get("KERNEL_USERNAME") or getpass.getuser()
        environment["KERNEL_USERNAME"] = username
        require_authorized(
            username,
            kernelspec=entry.name,
            config=entry.proxy_config,
            authorized=self.parent.authorized_users,
            unauthorized=self.parent.unauthorized_users,
        )
        if kernel_id in self or kernel_id in self._starting:
            raise DuplicateKernelError(
                f"Kernel {kernel_id} exists already. Omit KERNEL_ID, or shut that kernel down first.", field="env.KERNEL_ID"
            )
        owners = [getattr(manager, "username", "") for manager in self._kernels.values()] + list(self._starting.values())
        require_room(username, owners=owners, maximum=self.parent.max_kernels, per_user=self.parent.max_kernels_per_user)
        self._starting[kernel_id] = username
        try:
            if entry.specification is not None:
                await self._start_warm(kernel_id, entry, environment, path=path)
            else:
                await start_foreign(
                    self, kernel_id=kernel_id, entry=entry, env=environment, path=path, headers=kernel_headers or {}
                )
        finally:
            del self._starting[kernel_id]
        if not self._initialized_culler:
            self.initialize_culler()
        log.info("Kernel started: %s (%s)", kernel_id, entry.name)
        return kernel_id

    def adopt(self, claimed: ClaimedKernel) -> None:
        """Take in a kernel that an earlier gateway claimed, under its id."""
        kernel_id, name = claimed.kernel_id, claimed.claim.kernel_name
        entry = self.index.snapshot.get(name)
        if entry is None or entry.kernel_spec is None:
            entry = KernelspecEntry(name=name, resource_dir="", document={}, kernel_spec=KernelSpec(display_name=name))
        manager, proxy = self._new_warm(kernel_id, entry)
        manager.adopt(proxy, claimed)
        self._register_warm(kernel_id, manager, claimed)
        if not self._initialized_culler:
            self.initialize_culler()

    async def _start_warm(self, kernel_id: str, entry: KernelspecEntry, env: dict[str, str], *, path: str | None) -> None:
        directory = await self._working_directory(entry, env, path=path)
        manager, proxy = self._new_warm(kernel_id, entry)
        try:
            await manager.start(proxy, env=env, working_directory=directory)
        except BaseException:
            manager.forget()
            raise
        claimed = manager.claimed
        assert claimed is not None  # start() returned
        self._register_warm(kernel_id, manager, claimed)

    def _new_warm(self, kernel_id: str, entry: KernelspecEntry) -> tuple[WarmKernelManager, PooledProcessProxy]:
        manager = WarmKernelManager(
            connection_file=os.path.join(self.connection_dir, f"kernel-{kernel_id}.json"),  # never written
            context=self.context,
            kernel_name=entry.name,
            kernel_spec_manager=self.kernel_spec_manager,
            log=self.log,
            parent=self,
        )
        manager.kernel_id = kernel_id
        manager._kernel_spec = entry.kernel_spec
        manager.specification = entry.specification
        specified = entry.specification.launch_timeout_seconds if entry.specification is not None else None
        manager.default_launch_timeout = specified or self.parent.launch_timeout
        manager.kernel_launch_timeout = manager.default_launch_timeout
        proxy_class = import_item(proxy_class_name(entry.document)) if entry.specification is not None else PooledProcessProxy
        proxy: PooledProcessProxy = proxy_class(manager, dict(entry.proxy_config))
        return manager, proxy

    def _register_warm(self, kernel_id: str, manager: WarmKernelManager, claimed: ClaimedKernel) -> None:
        self._kernels[kernel_id] = manager
        self._kernel_connections[kernel_id] = 0

        def note(relay: KernelRelay) -> None:
            manager.execution_state = relay.execution_state
            manager.last_activity = self.last_kernel_activity = utc_now()

        def hear(event: KernelEvent) -> None:
            if manager.shutting_down:
                return
            self.on_kernel_event(event)
            if event.kind == "gone" and self._kernels.get(kernel_id) is manager:
                log.warning("Kernel %s is gone: %s", kernel_id, event.message or "its launcher ended")
                self.remove_kernel(kernel_id)
                manager.forget()

        try:
            self.relays.attach(claimed, on_activity=note)
        except ChannelError as error:
            log.warning("Kernel %s: its channels are connected when a client comes: %s", kernel_id, error.message)
        claimed.add_listener(hear)

    async def _working_directory(self, entry: KernelspecEntry, env: Mapping[str, str], *, path: str | None) -> str | None:
        """Where a local kernel starts: KERNEL_WORKING_DIR, else the request's path below the gateway's own directory."""
        if entry.specification is None or entry.specification.substrate != "local":
            return None
        wanted = env.get("KERNEL_WORKING_DIR") if self.parent.mirror_working_dirs else None
        if wanted:
            return await require_directory(wanted)
        return str(self.cwd_for_path(path)) if path else str(self.root_dir)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:
        """In place for ours; EG's way for others."""
        manager = self.get_kernel(kernel_id)
        if isinstance(manager, WarmKernelManager):
            await manager.restart_kernel(now=now)
            log.info("Kernel restarted: %s", kernel_id)
            return
        relay = self.relays.get(kernel_id)
        kernel = relay.kernel if relay is not None else None
        if not isinstance(kernel, ManagedKernel):
            await super().restart_kernel(kernel_id, now=now)
            return
        kernel.restart_began()
        try:
            await super().restart_kernel(kernel_id, now=now)
        except BaseException as error:
            kernel.restart_ended(error=f"It could not be restarted: {type(error).__name__}")
            raise
        kernel.restart_ended()

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """End one kernel; what is left of it is removed before this returns."""
        manager = self.get_kernel(kernel_id)
        if not isinstance(manager, WarmKernelManager):
            await super().shutdown_kernel(kernel_id, now=now, restart=restart)
            return
        self.remove_kernel(kernel_id)
        await manager.shutdown_kernel(now=now)
        self.last_kernel_activity = utc_now()
        log.info("Kernel shut down: %s", kernel_id)

    async def shutdown_everything(self, *, warm: bool) -> None:
        """At the gateway's end: all kernels at once, within SHUTDOWN_TIMEOUT. `warm`: ours too; else only EG's own."""
        doomed = [kernel_id for kernel_id, manager in self._kernels.items() if warm or not isinstance(manager, WarmKernelManager)]
        tasks = [asyncio.ensure_future(self.shutdown_kernel(kernel_id, now=True)) for kernel_id in doomed]
        if tasks:
            done, late = await asyncio.wait(tasks, timeout=SHUTDOWN_TIMEOUT)
            for task in late:
                task.cancel()
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.warning("A kernel was not shut down cleanly: %s", error)
            if late:
                log.warning("%d kernels were not shut down within %g s", len(late), SHUTDOWN_TIMEOUT)

    def remove_kernel(self, kernel_id: str) -> None:
        """Forget a kernel; its clients are told."""
        self.relays.detach(kernel_id)
        super().remove_kernel(kernel_id)
        self._kernel_connections.pop(kernel_id, None)
        self._kernel_ports.pop(kernel_id, None)

    def check_kernel_id(self, kernel_id: str) -> None:
        """404 for a kernel that is not here. EG would delete its persisted session as well."""
        if kernel_id not in self and not self._refresh_kernel(kernel_id):
            raise ReasonedHTTPError(
                404, reason="unknown_kernel", message=f"There is no kernel {kernel_id}. It may have been shut down or culled."
            )

    _check_kernel_id = check_kernel_id

    def kernel_model(self, kernel_id: str) -> dict[str, Any]:
        """The REST model. `last_activity` always has microseconds: jupyter_server's gateway client parses nothing else."""
        self.check_kernel_id(kernel_id)
        manager = self._kernels[kernel_id]
        model = {
            "id": kernel_id,
            "name": manager.kernel_name,
            "last_activity": manager.last_activity.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "execution_state": manager.execution_state,
            "connections": self._kernel_connections.get(kernel_id, 0),
        }
        if getattr(manager, "reason", None):
            model["reason"] = manager.reason
        return model

    def start_watching_activity(self, kernel_id: str) -> None:
        """Ours have no activity stream."""
        if not isinstance(self._kernels[kernel_id], WarmKernelManager):
            super().start_watching_activity(kernel_id)
