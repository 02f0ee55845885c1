"""One run of the gateway, from the first adopted kernel to the last closed socket.

The order matters. At the start: kernelspecs, runtime (which adopts what an earlier gateway left), kernels, and only then
requests, so that a client which reconnects early waits in the socket's queue instead of hearing that its kernel is unknown.
At the end: no more requests, then the kernels as the signal says, then the clients' connections, then the runtime. Everything
is bounded in time.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from tornado import httpserver

from eg_knative.gateway import response_manager
from eg_knative.gateway.kernels import GatewayKernels
from eg_knative.gateway.kernelspec_index import KernelspecIndex
from eg_knative.gateway.metrics import Metrics
from eg_knative.gateway.relays import Relays
from eg_knative.gateway.web_app import make_http_server, make_web_app
from eg_knative.processproxies import base as proxies
from eg_knative.runtime import Runtime

if TYPE_CHECKING:
    from eg_knative.gateway.app import EgKnativeApp

WANTED_FILES = 65_536
"""Open files that the gateway asks the system for: one for each connection, nine for each kernel in use."""

CLOSING_SECONDS = 5.0
"""For each of the smaller things that are closed at the end; kernels have a time of their own."""

RUNTIME_SECONDS = 40.0
"""For the runtime: it ends all members, each with its grace."""


class Serving:
    """Runs an initialised application once."""

    def __init__(self, app: EgKnativeApp) -> None:
        self.app = app
        self.log = app.log
        self.stopping = False
        self._ended_by: signal.Signals | None = None
        self._end = asyncio.Event()
        self.metrics = Metrics(version=app.version)
        self.kernels: GatewayKernels = app.kernel_manager
        self.relays = Relays(context=self.kernels.context)
        self.index = KernelspecIndex(find=app.kernel_spec_manager.find_kernel_specs)
        self.runtime = Runtime.get_or_create(app.settings_of_runtime)
        self.kernels.index = self.index
        self.kernels.relays = self.relays
        self.kernels.on_kernel_event = self.metrics.on_kernel_event
        app.kernel_spec_manager.index = self.index

    async def run(self) -> None:
        """Serve until a signal. Raises ConfigurationError when it cannot be started."""
        self._heed_signals()
        _raise_file_limit()
        server: httpserver.HTTPServer | None = None
        try:
            await self._open()
            server = make_http_server(self.app, make_web_app(self.app, serving=self))
            server.add_sockets(self.app.sockets)
            self.app.announce()
            # What is there now stays: the collector need not look at it again and again in the middle of a launch.
            gc.collect()
            gc.freeze()
            await self._end.wait()
        finally:
            await self._close(server)

    async def _open(self) -> None:
        response_manager.install()
        await self.index.open()
        self.runtime.pool.on_event.append(self.metrics.on_pool_event)
        await self.runtime.open()
        for claimed in list(self.runtime.pool.kernels.values()):
            self.kernels.adopt(claimed)
        if len(self.kernels):
            self.log.info("Adopted %d kernels of an earlier gateway", len(self.kernels))
        self.index.changed.append(lambda snapshot: self._serve_specifications())
        self._serve_specifications()

    def _serve_specifications(self) -> None:
        self.runtime.pool.set_specifications(self.index.specifications)

    async def _close(self, server: httpserver.HTTPServer | None) -> None:
        self.stopping = True
        detach = self._ended_by is not signal.SIGINT
        if self._ended_by is not None:
            self.log.info("%s: %s", self._ended_by.name, "kernels live on" if detach else "shutting kernels down")
        if server is not None:
            server.stop()
        await self.index.close()
        await self.kernels.shutdown_everything(warm=False)
        if not detach:
            await self.kernels.shutdown_everything(warm=True)
        await self._bounded("client connections", self.relays.close())
        await self._bounded("background work", proxies.background.close(timeout=CLOSING_SECONDS))
        await self._bounded("runtime", self.runtime.close(shut_down_kernels=not detach), seconds=RUNTIME_SECONDS)
        if server is not None:
            await self._bounded("HTTP connections", server.close_all_connections())
        await self._bounded("response port", response_manager.install().stop())
        response_manager.uninstall()
        for sock in self.app.sockets:
            sock.close()
        self.kernels.context.destroy(linger=0)
        self.log.info("The gateway has ended")

    async def _bounded(self, what: str, work: Awaitable[Any], *, seconds: float = CLOSING_SECONDS) -> None:
        try:
            await asyncio.wait_for(work, seconds)
        except asyncio.TimeoutError:
            self.log.warning("Closing the %s took more than %g s and was given up", what, seconds)
        except Exception:
            self.log.exception("Closing the %s failed", what)

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled, number)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _signalled(self, number: signal.Signals) -> None:
        """The first signal decides."""
        if self._ended_by is None:
            self._ended_by = number
            self._end.set()
        else:
            self.log.info("%s: the gateway is ending already; every step of that is bounded in time", number.name)


def _raise_file_limit() -> None:
    """A thousand idle connections must not use up the descriptors that kernels need; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
