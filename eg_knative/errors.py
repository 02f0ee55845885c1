"""The one tree of errors that eg-knative raises.

It exists so that every floor can say what went wrong in the words of its user, and only the gateway floor turns that into
HTTP. A cause is always chained (`raise … from error`). It does not promise anything about errors of other packages.

    EgKnativeError
    ├── BadRequestError          the request cannot be honoured as it stands; names the field
    │   ├── UnknownKernelspecError
    │   ├── DuplicateKernelError
    │   └── NotAllowedError      an operator's allow-list or limit says no
    ├── ConfigurationError       an option, a kernelspec or the environment is wrong; names the field
    ├── LaunchError              a kernel could not be started; carries a reason word
    │   └── LaunchTimeoutError
    ├── LauncherError            a launcher answered with an error, or with nonsense
    │   ├── LauncherRefusedError its answer was a well-formed refusal
    │   ├── LauncherUnreachableError
    │   └── AlreadyClaimedError  the member belongs to somebody else
    └── ChannelError             the ZeroMQ channels of a kernel cannot be used
"""

from __future__ import annotations


class EgKnativeError(Exception):
    """Base of all errors of this project.

    `message` is one or two sentences for the person who asked: what happened, to what, what to do. It never contains a
    key, a token or an environment value.
    """

    reason = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if reason is not None:
            self.reason = reason


class BadRequestError(EgKnativeError):
    """The request is well understood and wrong; nothing was created."""

    reason = "bad_request"


class UnknownKernelspecError(BadRequestError):
    """No kernelspec of that name is served."""

    reason = "unknown_kernelspec"


class DuplicateKernelError(BadRequestError):
    """A kernel with the requested id exists."""

    reason = "duplicate_kernel_id"


class NotAllowedError(BadRequestError):
    """An allow-list or a limit of the operator's refuses the request."""

    reason = "not_allowed"


class ConfigurationError(EgKnativeError):
    """An option or a kernelspec is wrong. The message names the field and the remedy."""

    reason = "bad_configuration"


class LaunchError(EgKnativeError):
    """A kernel could not be started; everything made for it is gone again."""

    reason = "launch_failed"


class LaunchTimeoutError(LaunchError):
    """The kernel was not ready within its launch time; everything made for it is gone again."""

    reason = "launch_timeout"


class LauncherError(EgKnativeError):
    """A launcher's answer cannot be used."""

    reason = "launcher_error"


class LauncherRefusedError(LauncherError):
    """The launcher answered with a well-formed refusal; `reason` is its word, `status` its HTTP status."""

    def __init__(self, message: str, *, reason: str, status: int, field: str | None = None) -> None:
        super().__init__(message, reason=reason, field=field)
        self.status = status


class LauncherUnreachableError(LauncherError):
    """Nobody answered at the launcher's address within the time limit."""

    reason = "launcher_unreachable"


class AlreadyClaimedError(LauncherError):
    """Another claim owns the member."""

    reason = "already_claimed"


class ChannelError(EgKnativeError):
    """The ZeroMQ channels of a kernel cannot be used."""

    reason = "channel_error"
