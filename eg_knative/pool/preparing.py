"""Channels that are connected before anybody asks for them.

It exists so that a boot, a claim and an adoption prepare in one way, and what is prepared is always in the entry, where
the end of the member closes it. It does not know what channels do, nor retry: a kernel that does not answer in time is
the caller's to judge.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from eg_knative.errors import EgKnativeError, LaunchError
from eg_knative.pool.member import PoolMember
from eg_knative.wire.control import ConnectionInfo
from eg_knative.wire.deadline import within

if TYPE_CHECKING:
    from eg_knative.wire.channels import ChannelSet

Prepare = Callable[[ConnectionInfo], Awaitable["ChannelSet"]]


class Preparer:
    """Fills `PoolMember.channels`. `prepare` None: channels are somebody else's business, and nothing is done."""

    def __init__(self, *, prepare: Prepare | None) -> None:
        self._prepare = prepare

    @property
    def prepares(self) -> bool:
        """Channels are prepared here."""
        return self._prepare is not None

    async def prepare(self, entry: PoolMember, connection: ConnectionInfo, *, timeout: float) -> None:
        """Connect the channels, replacing what was prepared before. Raises LaunchError when they are not usable in time."""
        if self._prepare is None:
            return
        if entry.channels is not None:
            entry.channels.close()
            entry.channels = None
        prepare = self._prepare

        async def fill() -> None:  # what is prepared is kept by the entry at once, so that no cancellation can lose it
            entry.channels = await prepare(connection)

        try:
            await within(timeout, fill())
        except (asyncio.TimeoutError, EgKnativeError, OSError) as error:
            raise LaunchError(
                f"The kernel {entry.kernelspec} runs, but did not answer on its channels. See its log, and whether it reads the"
                " connection file.",
                reason="channels_not_ready",
            ) from error
