"""Enterprise Gateway's ResponseManager, on a port that cannot be held up.

It exists so that kernelspecs with Enterprise Gateway's own remote process proxies, and the launchers in their images, work in
this gateway without the defects of the original: see `wire.push_listener`. The options are Enterprise Gateway's
(EG_RESPONSE_IP, EG_RESPONSE_PORT, EG_RESPONSE_PORT_RETRIES, EG_RESPONSE_ADDR_ANY, EG_PROHIBITED_LOCAL_IPS, EG_POLL_INTERVAL),
read by its own module. The port is bound when the first remote proxy is made, as in the original; a gateway without one opens
none.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from enterprise_gateway.services.processproxies import processproxy
from enterprise_gateway.services.processproxies.processproxy import ResponseManager

from eg_knative.errors import ConfigurationError
from eg_knative.wire.eg_payload import new_private_key, public_key_text
from eg_knative.wire.push_listener import PushListener
from eg_knative.wire.waiting_launches import WaitingLaunches


class PushResponseManager(ResponseManager):  # type: ignore[misc]  # Enterprise Gateway has no types
    """What every RemoteProcessProxy gets from `ResponseManager.instance()` once `install()` has been called."""

    def __init__(self, **kwargs: Any) -> None:
        # Not ResponseManager's own: it makes its key slowly, binds at once and starts the callback that blocks.
        super(ResponseManager, self).__init__(**kwargs)
        self._response_ip: str | None = None
        self._response_port: int | None = None
        self._response_socket: socket.socket | None = None
        self._connection_processor = None  # Enterprise Gateway's periodic callback; never made here
        self._private_key = new_private_key()
        self._launches = WaitingLaunches()
        self._listener: PushListener | None = None
        self._starting: asyncio.Task[None] | None = None

    @property
    def public_key(self) -> str:
        """The public key as launchers take it on their command line."""
        return public_key_text(self._private_key)

    @property
    def response_address(self) -> str:
        """IP:PORT that launchers connect to; binds it at first use. Raises RuntimeError when no port is free."""
        if self._listener is None:
            self._prepare_response_socket()  # Enterprise Gateway's, so that its options mean the same
            bound_socket: socket.socket = self._response_socket  # type: ignore[assignment]  # set by the line above
            self._listener = PushListener(
                bound_socket=bound_socket, private_key=self._private_key, launches=self._launches, log=self.log
            )
        self._serve()
        return f"{self._response_ip}:{self._response_port}"

    @property
    def launches(self) -> WaitingLaunches:
        """The launches that wait for their launcher."""
        return self._launches

    def register_event(self, kernel_id: str) -> None:
        """Welcome the answer of `kernel_id`'s launcher, for as long as the task that launches it lives."""
        try:
            owner = asyncio.current_task()
        except RuntimeError:  # no loop runs: a stored session is loaded at start, nobody will wait
            owner = None
        self._launches.register(kernel_id, owner=owner)

    async def get_connection_info(self, kernel_id: str) -> dict[str, Any]:
        """Wait for the launcher's answer, at most two of Enterprise Gateway's poll intervals.

        Its proxies sleep for one interval and then ask, again and again. Asking was worth 5 ms, so that an answer lay for half an
        interval; waiting here for two means that two answers of three are noticed at once. Raises asyncio.TimeoutError, which the
        proxies take for "not yet", or LaunchError.
        """
        self._serve()
        information = await self._launches.take(kernel_id, timeout=2 * processproxy.poll_interval)
        for name, own in (("pid", os.getpid()), ("pgid", os.getpgrp())):
            # A launcher that is PID 1 of its own container may well have the gateway's number. Signals to it go elsewhere.
            if information.get(name) == own:
                del information[name]
        return information

    async def stop(self) -> None:
        """Close the port. A launch that is waiting times out; a later launch opens a port again."""
        starting, self._starting = self._starting, None
        listener, self._listener = self._listener, None
        if starting is not None:
            await asyncio.wait([starting])
        if listener is not None:
            await listener.close()
        self._response_socket = None

    def stop_response_manager(self) -> None:
        """Enterprise Gateway's name and manner for `stop`; closes in the background when a loop runs."""
        if self._listener is not None:
            self._stopping = asyncio.ensure_future(self.stop())

    def _start_response_manager(self) -> None:
        """Nothing to start: `response_address` does."""

    def _serve(self) -> None:
        """Accept as soon as a loop runs; until then launchers wait in the socket's queue."""
        if self._listener is None or self._starting is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._starting = loop.create_task(self._listener.start(), name="response port")
        self._starting.add_done_callback(self._report)

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("The response port cannot be served: %s. Launches of remote kernels will time out.", error)


def install() -> PushResponseManager:
    """Make `ResponseManager.instance()` return ours, in this process. Repeated calls return the same one.

    Call it before the first kernel is launched. Raises ConfigurationError when Enterprise Gateway's own exists already.
    """
    existing = ResponseManager._instance if ResponseManager.initialized() else None
    if existing is not None and not isinstance(existing, PushResponseManager):
        raise ConfigurationError(
            "Enterprise Gateway's own response manager exists already. Install this one before the first kernel is launched."
        )
    manager: PushResponseManager = PushResponseManager.instance()
    return manager


def uninstall() -> None:
    """Forget the installed manager (after `stop`), so that this process can make another."""
    PushResponseManager.clear_instance()
