"""The composition root: substrates, channels and the pool of one process, built from settings in one place.

Our application makes it at start; in stock Enterprise Gateway the first process proxy does. It reads no option and no
environment variable, and it is the only module that knows which substrate classes there are. One runtime serves one
event loop; a process that runs one loop, as gateways do, has one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import zmq

from eg_knative.pool.manager import PoolManager
from eg_knative.settings import Settings
from eg_knative.specification import KernelSpecification, parse_specification
from eg_knative.substrates.local import LocalSubstrate
from eg_knative.wire.channels import ChannelSet, connect_channels
from eg_knative.wire.control import ConnectionInfo

logger = logging.getLogger(__name__)

PREPARE_TIMEOUT_SECONDS = 20.0
SOCKETS_LIMIT = 16_384
"""ZeroMQ sockets of one context; libzmq's own limit of 1,023 would be reached by 255 kernels."""


class Runtime:
    """What one gateway process is made of. `settings` are those it was built with; `pool` is its PoolManager."""

    _runtimes: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Runtime]] = weakref.WeakKeyDictionary()

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, SOCKETS_LIMIT)
        self.pool = PoolManager(
            substrates={LocalSubstrate.name: LocalSubstrate(settings=settings.local)},
            settings=settings,
            prepare=self._prepare,
        )
        self._opening: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @classmethod
    def current(cls) -> Runtime | None:
        """The runtime of the running event loop, unless there is none or it was closed."""
        return cls._runtimes.get(asyncio.get_running_loop())

    @classmethod
    def get_or_create(cls, settings: Settings) -> Runtime:
        """The runtime of the running event loop, built from `settings` when there is none. It is not opened by this."""
        loop = asyncio.get_running_loop()
        runtime = cls._runtimes.get(loop)
        if runtime is None:
            runtime = cls._runtimes[loop] = cls(settings)
        elif runtime.settings != settings:
            logger.warning("The runtime of this process exists already; other settings that came later are ignored")
        return runtime

    async def open(self) -> None:
        """Open everything and take over what an earlier gateway left. Calls after the first wait for the first.

        Raises ConfigurationError; then it can be called again.
        """
        if self._opening is None or (self._opening.done() and (self._opening.cancelled() or self._opening.exception())):
            self._opening = asyncio.ensure_future(self.pool.open())
        await asyncio.shield(self._opening)

    async def close(self, *, shut_down_kernels: bool) -> None:
        """Close everything; kernels live on for the next gateway unless they are to be shut down. Calls after the first
        wait for it."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(shut_down_kernels))
        await asyncio.shield(self._closing)

    def specification_for(self, name: str, document: Mapping[str, Any], resource_dir: str) -> KernelSpecification:
        """One `kernel.json`, checked. A bare `python` in its argv is the gateway's own, as jupyter_client has it.
        Raises ConfigurationError."""
        return parse_specification(name=name, document=document, resource_dir=resource_dir, python=sys.executable)

    async def _prepare(self, connection: ConnectionInfo) -> ChannelSet:
        return await connect_channels(context=self._context, connection=connection, timeout=PREPARE_TIMEOUT_SECONDS)

    async def _close(self, shut_down_kernels: bool) -> None:
        try:
            if self._opening is not None and not self._opening.done():
                self._opening.cancel()
                await asyncio.wait({self._opening})
            await self.pool.close(shut_down_kernels=shut_down_kernels)
        finally:
            loop = asyncio.get_running_loop()
            if self._runtimes.get(loop) is self:
                del self._runtimes[loop]
            self._context.destroy(linger=0)
