"""What a member tells about itself, and waking those who listen when it changes. Memory only; decides nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

log = logging.getLogger("eg_launcher")


class Status:
    """State of the member and of its kernel, in the protocol's words."""

    def __init__(self) -> None:
        self.state = "starting"
        self.message: str | None = None
        self.kernel_state = "absent"
        self.generation = 0
        self.started_by: str | None = None
        self.notice: str | None = None
        self.restarts = 0
        self.exit: dict[str, Any] | None = None
        self.listeners: set[asyncio.Event] = set()
        self.failed_at: float | None = None
        self._kernel_state_since = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """Since the kernel's last change between busy and idle; 0 while it is busy."""
        return 0.0 if self.kernel_state == "busy" else round(time.monotonic() - self._kernel_state_since, 3)

    @property
    def over(self) -> bool:
        """Nothing is started by itself any more."""
        return self.state in ("stopping", "failed")

    def set_state(self, state: str) -> None:
        """Of the member. Nothing leaves `stopping`."""
        if self.state != "stopping":
            self.state = state
        self.changed()

    def set_kernel_state(self, state: str) -> None:
        """Of the kernel."""
        self.kernel_state = state
        self._kernel_state_since = time.monotonic()
        self.changed()

    def note(self, notice: str) -> None:
        """Why a faster way was not taken."""
        self.notice = notice
        log.warning("%s", notice)
        self.changed()

    def fail(self, message: str) -> None:
        """The member is of no use as it is."""
        self.message = message
        self.failed_at = time.monotonic()
        log.error("%s", message)
        self.set_state("failed")

    def record_exit(self, ended: dict[str, Any], *, restarted: bool) -> None:
        """The last end of a kernel that nobody asked for."""
        self.exit = {"generation": self.generation, **ended, "restarted": restarted}

    def changed(self) -> None:
        """Wake the streams of beats."""
        for listener in self.listeners:
            listener.set()
