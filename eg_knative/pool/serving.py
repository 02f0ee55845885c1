"""What all who serve a claim have in common: the claim itself, and the gate that closes while the gateway stops.

It exists so that claiming, launching and promoting share these and know little else of each other. It serves nothing.
"""

from __future__ import annotations

from eg_knative.errors import LaunchError, LaunchTimeoutError
from eg_knative.specification import KernelSpecification
from eg_knative.wire.control import ClaimRequest

CLEAN_UP_SECONDS = 5.0
"""A failed launch waits so long for what it made to be gone before it is reported; the cleaning goes on in any case."""


class Claim:
    """One claim while it is served: its request, its deadline, the seconds of each phase."""

    def __init__(self, *, request: ClaimRequest, specification: KernelSpecification, began: float, timeout: float) -> None:
        self.request = request
        self.specification = specification
        self.began = began
        self.timeout = timeout
        self.phases: dict[str, float] = {}
        self.had_kernel = False

    def remaining(self, now: float) -> float:
        """Seconds that are left; negative when it is too late."""
        return self.began + self.timeout - now

    def sets_any(self, variables: tuple[str, ...]) -> bool:
        """The request sets one of these environment variables."""
        return any(name in self.request.env for name in variables)

    def too_late(self) -> LaunchTimeoutError:
        """The error for a claim whose time is over."""
        return LaunchTimeoutError(
            f"The kernel {self.specification.name} was not ready within {self.timeout:g} s. Try again, or raise its"
            " launch_timeout_seconds."
        )


class Gate:
    """Closed, no claim is taken and none is handed over any more. It is closed until the pool opens it."""

    def __init__(self) -> None:
        self.closed = True

    def check(self) -> None:
        """Raises LaunchError while the gate is closed."""
        if self.closed:
            raise LaunchError("The gateway is stopping and starts no kernels. Try again in a moment.", reason="stopping")
