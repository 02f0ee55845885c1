"""Our errors as HTTP answers: the one table of statuses, and the exception that carries reason, message and field to the client.

Enterprise Gateway and jupyter_server turn a tornado HTTPError into `{"reason", "message"}`; JupyterLab shows both to its user.
"""

from __future__ import annotations

from tornado import web

from eg_knative import errors

_STATUS: tuple[tuple[type[errors.EgKnativeError], int], ...] = (
    (errors.UnknownKernelspecError, 404),
    (errors.DuplicateKernelError, 409),
    (errors.NotAllowedError, 403),
    (errors.BadRequestError, 400),
    (errors.LaunchTimeoutError, 504),
    (errors.LauncherUnreachableError, 502),
)

_STATUS_OF_REASON = {"body_too_large": 413, "quota": 503}


def status_of(error: errors.EgKnativeError) -> int:
    """The HTTP status for one of our errors; 500 for what the table does not name."""
    if isinstance(error, errors.LauncherRefusedError) and error.status in {409, 504}:
        return error.status
    if error.reason in _STATUS_OF_REASON:
        return _STATUS_OF_REASON[error.reason]
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 500


class ReasonedHTTPError(web.HTTPError):
    """An HTTPError with a reason word (`reason`), a sentence for people (`message`) and, where one is at fault, a field.

    `message` is shown as it is; it is no template.
    """

    def __init__(self, status: int, *, reason: str, message: str, field: str | None = None) -> None:
        super().__init__(status, message, reason=reason)
        self.message = message
        self.field = field

    @property
    def log_message(self) -> str:
        """As it is. tornado's doubles every % sign, and EG sends that to the client."""
        return self.message


def http_error(error: errors.EgKnativeError) -> ReasonedHTTPError:
    """The same error, for the client. Raise it `from error`."""
    return ReasonedHTTPError(status_of(error), reason=error.reason, message=error.message, field=error.field)
