"""The launches that wait for a launcher's payload, by kernel id, and their end.

It exists because a registration must not outlive its launch: Enterprise Gateway registers a kernel id and, when the launch
fails, never says so. Memory only; belongs to one event loop; does not know how a payload arrives.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from eg_knative.errors import LaunchError
from eg_knative.wire.eg_payload import PrivateConnectionInfo

REGISTRATION_LIMIT = 10_000
REGISTRATION_SECONDS = 3_600.0
"""Only a bound for launches without an owner; the end of the owner's task removes the others at once."""


class _Launch:
    def __init__(self, *, registered_at: float) -> None:
        self.registered_at = registered_at
        self.arrived = asyncio.Event()
        self.information: PrivateConnectionInfo | None = None


class WaitingLaunches:
    """A collection of the kernel ids for which a payload is still welcome."""

    def __init__(
        self,
        *,
        limit: int = REGISTRATION_LIMIT,
        seconds: float = REGISTRATION_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._launches: dict[str, _Launch] = {}  # oldest first

    def register(self, kernel_id: str, *, owner: asyncio.Task[object] | None) -> None:
        """Welcome a payload for `kernel_id`, until it was taken, `owner` has ended, or the bounds of age and number are met.

        A kernel that is launched again (a restart) takes the place of its earlier registration.
        """
        now = self._clock()
        self._launches.pop(kernel_id, None)
        for old in list(self._launches):
            if len(self._launches) < self._limit and now - self._launches[old].registered_at < self._seconds:
                break
            del self._launches[old]
        launch = self._launches[kernel_id] = _Launch(registered_at=now)
        if owner is not None:
            owner.add_done_callback(lambda _task: self._end(kernel_id, launch))

    def deliver(self, information: PrivateConnectionInfo) -> None:
        """Wake whoever waits for the kernel that `information` names, which must be in this collection."""
        launch = self._launches[information["kernel_id"]]
        launch.information = information
        launch.arrived.set()

    async def take(self, kernel_id: str, *, timeout: float) -> PrivateConnectionInfo:
        """Wait at most `timeout` seconds for the payload, and end the registration with it.

        Raises asyncio.TimeoutError when there is none yet, LaunchError when none is waited for any more.
        """
        launch = self._launches.get(kernel_id)
        if launch is None:
            raise LaunchError(
                f"Kernel {kernel_id} is not registered for its launcher's answer any more. Start it again.",
                reason="launch_forgotten",
            )
        await asyncio.wait_for(launch.arrived.wait(), timeout)
        self._end(kernel_id, launch)
        if launch.information is None:  # pragma: no cover (set before the event, in deliver)
            raise LaunchError(f"Kernel {kernel_id} has no connection information.")
        return launch.information

    def _end(self, kernel_id: str, launch: _Launch) -> None:
        if self._launches.get(kernel_id) is launch:
            del self._launches[kernel_id]

    def __contains__(self, kernel_id: object) -> bool:
        launch = self._launches.get(kernel_id) if isinstance(kernel_id, str) else None
        return launch is not None and launch.information is None

    def __iter__(self) -> Iterator[str]:
        return (kernel_id for kernel_id in tuple(self._launches) if kernel_id in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def registered(self) -> int:
        """All registrations, those whose payload has arrived and was not taken yet included."""
        return len(self._launches)
