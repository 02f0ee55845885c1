"""What every handler of the gateway shares: the token, JSON errors, and limits on what a client may send.

EG's handlers are kept and mended: `mended` puts `GatewayHandler` before each of them. Errors are
`{"reason": WORD, "message": SENTENCE}` with a `field` where one is at fault; an unexpected one has a `log_id` to look for in the
log instead of a traceback.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable
from http.client import responses
from typing import Any, TypeVar, cast

from enterprise_gateway.mixins import CORSMixin
from jupyter_client.multikernelmanager import DuplicateKernelError as JupyterDuplicateKernelError
from jupyter_server.auth import authorized
from tornado import web

from eg_knative.errors import BadRequestError, EgKnativeError
from eg_knative.gateway import token
from eg_knative.processproxies.http import ReasonedHTTPError, http_error

log = logging.getLogger(__name__)

Method = TypeVar("Method", bound=Callable[..., Any])


def permitted(method: Method) -> Method:
    """Ask the operator's authorizer (EG's authorizer_class), as jupyter_server's handlers do."""
    return cast("Method", web.authenticated(authorized(method)))


def reason_word(status: int) -> str:
    """`Not Found` as `not_found`."""
    return responses.get(status, "error").lower().replace(" ", "_").replace("-", "_")


def describe(status: int, error: BaseException | None) -> dict[str, str]:
    """The body of an error answer."""
    if isinstance(error, EgKnativeError):
        error = http_error(error)
    if isinstance(error, ReasonedHTTPError):
        body = {"reason": str(error.reason), "message": error.message}
        if error.field:
            body["field"] = error.field
        return body
    if isinstance(error, web.HTTPError):
        message = error.log_message or ""
        if message and error.args:
            message = message % error.args
        # EG puts whole sentences where HTTP has a phrase.
        return {"reason": reason_word(status), "message": message or error.reason or _sentence(status)}
    return {"reason": reason_word(status), "message": _sentence(status)}


def _sentence(status: int) -> str:
    if status == 405:
        return "This path does not take that method."
    return f"{responses.get(status, 'Error')}."


class GatewayHandler(web.RequestHandler):
    """Token, errors and body of one request. Goes before EG's handler in the bases."""

    requires_token = True
    _log_id: str | None = None

    def prepare(self) -> Awaitable[None] | None:
        """Refuse the request without the token. A CORS preflight (OPTIONS) cannot carry one."""
        if self.requires_token and self.request.method != "OPTIONS":
            presented = token.presented_tokens(
                authorization=self.request.headers.get("Authorization"), arguments=self.get_query_arguments("token")
            )
            if not token.accepts(self.settings["egknative_token"], presented=presented):
                raise ReasonedHTTPError(
                    401,
                    reason="unauthorized",
                    message="The token is missing or wrong. Send the header 'Authorization: token …' or '?token=…'.",
                )
        return super().prepare()

    def get_json_body(self) -> Any:
        """The body as JSON, None when there is none. Raises BadRequestError; the body is not logged."""
        if not self.request.body.strip():
            return None
        try:
            return json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            where = f" in line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            raise BadRequestError(f"The body is not JSON{where}. Correct it.", reason="bad_json") from error

    def get_json_object(self) -> dict[str, Any]:
        """The body as an object, {} when there is none. Raises BadRequestError."""
        body = self.get_json_body()
        if body is None:
            return {}
        if not isinstance(body, dict):
            raise BadRequestError("The body is not a JSON object. Send {…}.", reason="bad_json")
        return body

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """JSON, without a traceback."""
        error = kwargs["exc_info"][1] if kwargs.get("exc_info") else None
        if isinstance(error, EgKnativeError):
            error = http_error(error)
        if isinstance(error, web.HTTPError):
            status_code = error.status_code
        if isinstance(error, JupyterDuplicateKernelError):
            status_code = 409
        body = describe(status_code, error)
        if self._log_id is not None:
            body["message"] = f"The gateway met an unexpected error. Its log says more under {self._log_id}."
            body["log_id"] = self._log_id
        self.set_status(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body))

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """tornado's; our own errors get the status of their table here, before headers are made."""
        error = kwargs["exc_info"][1] if kwargs.get("exc_info") else None
        if isinstance(error, EgKnativeError):
            status_code = http_error(error).status_code
        super().send_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """One line for what the client did wrong; the traceback, under an id, for what we did."""
        if isinstance(value, (EgKnativeError, web.HTTPError)):
            body = describe(getattr(value, "status_code", 500), value)
            log.info("%s %s refused: %s: %s", self.request.method, self.request.path, body["reason"], body["message"])
            return
        self._log_id = secrets.token_hex(6)
        log.error("%s %s failed (%s)", self.request.method, self.request.path, self._log_id, exc_info=(typ, value, tb))


class JSONHandler(GatewayHandler, CORSMixin, web.RequestHandler):  # type: ignore[misc]  # EG has no types
    """Base of handlers that are ours alone."""

    def set_default_headers(self) -> None:
        """EG's CORS headers."""
        web.RequestHandler.set_default_headers(self)
        for setting, header in self.SETTINGS_TO_HEADERS.items():
            if self.settings.get(setting):
                self.set_header(header, self.settings[setting])
        self.set_header("X-Content-Type-Options", "nosniff")

    def answer(self, body: Any, *, status: int = 200) -> None:
        """Finish with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body))

    def options(self, *args: Any, **kwargs: Any) -> None:
        """CORS preflight."""
        self.finish()


class NotFoundHandler(JSONHandler):
    """404 for every other path, whatever the method."""

    requires_token = False

    def prepare(self) -> Awaitable[None] | None:
        """Always raises."""
        raise ReasonedHTTPError(
            404, reason="not_found", message="There is nothing at this path. See docs/rest.md for what there is."
        )


def mended(handler: type[Any]) -> type[Any]:
    """EG's handler with our token check and errors."""
    if issubclass(handler, GatewayHandler):
        return handler
    return type(handler.__name__, (GatewayHandler, handler), {"__doc__": handler.__doc__})
