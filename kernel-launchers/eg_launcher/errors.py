"""One exception tree, so that a caller can catch everything of the launcher's with one word.

Messages never contain a key, a token, an environment value, or who owns a member: they are sent to callers and logged.
"""

from __future__ import annotations

from typing import Any


class LauncherError(Exception):
    """Anything that this package raises on purpose."""


class ConfigurationError(LauncherError):
    """The configuration cannot be used. `field` names the place (`kernel.argv`), or is empty."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class FramingError(LauncherError):
    """A frame was too large, was not a JSON object, or the other side went away in the middle of one."""


class ZygoteError(LauncherError):
    """The zygote did not start, did not answer in time, refused, or is gone. Callers fall back to a plain start."""


class KernelStartError(LauncherError):
    """A kernel process ended, or did not bind in time, before it could be used.

    `exit` is the protocol's `exit` object without `generation` and `restarted`; `timed_out` tells a kernel that lived but
    did not bind from one that ended.
    """

    def __init__(self, message: str, *, exit: dict[str, Any], timed_out: bool = False) -> None:
        super().__init__(message)
        self.exit = exit
        self.timed_out = timed_out


class RequestError(LauncherError):
    """A call that is answered with an error: HTTP `status`, `reason` (a word of the protocol), message, maybe a field."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        exit: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.field = field
        self.exit = exit

    def as_json(self) -> dict[str, Any]:
        """The body of the answer."""
        answer: dict[str, Any] = {"reason": self.reason, "message": str(self)}
        if self.field is not None:
            answer["field"] = self.field
        if self.exit is not None:
            answer["exit"] = self.exit
        return answer
