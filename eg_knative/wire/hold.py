"""The hold: one open stream of beats from a launcher, opened again for as long as the member is wanted.

It exists because the stream does three things at once: it tells how the kernel is, it tells the launcher that its
gateway lives, and (on Knative) it keeps the pod. A lost stream is not a lost kernel, so the hold goes on trying;
whether the kernel is gone is the substrate's word. Beats may be missed between two streams; what counts is always
the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from eg_knative.errors import EgKnativeError, LauncherUnreachableError
from eg_knative.wire.control import Beat, LauncherClient

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
SHORTEST_SILENCE_SECONDS = 1.0
"""On a busy machine a beat every 0.1 s may be late without anything being wrong."""


class Hold:
    """One open beats stream, reconnected with back-off (0.1 s, doubled to 5 s, with jitter) while wanted.

    `interval`: seconds between beats; three of them without one (1 s at least) count as lost. `on_beat` is called
    on the event loop for every beat; a changed `boot_id` in it means that memory was lost. `on_lost` is called with
    a sentence once per outage. What either raises is logged and harms nothing.
    """

    def __init__(
        self, *, client: LauncherClient, interval: float, on_beat: Callable[[Beat], None], on_lost: Callable[[str], None]
    ) -> None:
        self.latest: Beat | None = None
        self.connected = False
        self._client = client
        self._interval = interval
        self._silence = max(3 * interval, SHORTEST_SILENCE_SECONDS)
        self._on_beat = on_beat
        self._on_lost = on_lost
        self._outage_told = False
        self._waiting: dict[asyncio.Future[Beat], Callable[[Beat], bool]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Open the stream in the background. Once."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name=f"hold of {self._client.address}")
            self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Let go: the stream is closed when this returns, and nobody is called any more. Idempotent."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        self.connected = False
        self._give_up("The hold was closed.")

    async def wait_beat(self, predicate: Callable[[Beat], bool], *, timeout: float) -> Beat:
        """The first beat that fits: the latest while connected, or one to come.

        Raises LauncherUnreachableError when none came within `timeout` seconds or the hold was closed.
        """
        if self.connected and self.latest is not None and predicate(self.latest):
            return self.latest
        if self._task is None or self._task.done():
            raise LauncherUnreachableError("The hold is not open.")
        future: asyncio.Future[Beat] = asyncio.get_running_loop().create_future()
        self._waiting[future] = predicate
        try:
            await asyncio.wait({future}, timeout=timeout)
        finally:
            del self._waiting[future]
        if not future.done():
            raise LauncherUnreachableError(f"The launcher did not say what was waited for within {timeout:g} s.")
        return future.result()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            why = "The launcher closed the stream."
            try:
                async with contextlib.aclosing(self._client.beats(interval=self._interval, silence=self._silence)) as beats:
                    async for beat in beats:
                        pause = FIRST_PAUSE_SECONDS
                        self._accept(beat)
            except EgKnativeError as error:
                why = error.message
            self._lose(why)
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - jitter, not cryptography
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _accept(self, beat: Beat) -> None:
        self.latest = beat
        self.connected = True
        self._outage_told = False
        for future, predicate in list(self._waiting.items()):
            if not future.done() and predicate(beat):
                future.set_result(beat)
        try:
            self._on_beat(beat)
        except Exception:
            log.exception("The reader of a beat failed")

    def _lose(self, why: str) -> None:
        self.connected = False
        if self._outage_told:
            return
        self._outage_told = True
        try:
            self._on_lost(why)
        except Exception:
            log.exception("The reader of a lost hold failed")

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        log.error("A hold ended by a defect of its own", exc_info=task.exception())
        self._give_up("The hold ended by a defect of its own.")
        self._lose("The hold ended by a defect of its own.")

    def _give_up(self, why: str) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_exception(LauncherUnreachableError(why))
