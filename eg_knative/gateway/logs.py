"""What never gets into a log: keys, tokens, environments.

Three walls. Our own code does not log them. Requests are logged by a function that removes secrets from the URL. And because
EG, jupyter_server and tornado have lines of their own that print a body, an environment or a connection file at DEBUG, a
filter on the handlers of the root and the application's logger replaces those lines and any text of the gateway's token. It
does not know the values of other people's secrets.
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.parse import quote

from jupyter_server.log import _scrub_uri
from tornado.log import access_log

MASK = "[secret]"

UNSPEAKABLE = (
    "BaseProcessProxy.launch_process() env",
    "Kernel args:",
    "Bad JSON:",
    "Decrypted payload",
    "Connection info received",
    "Received connection info",
    "Host connection info",
    "Launching kernel:",
    "Starting kernel",
    "kernel_headers",
    "Loading connection file",
    "WebSocket message is",
)
"""Beginnings or parts of lines of other packages whose arguments are a request body, an environment or connection info."""


class SecretFilter(logging.Filter):
    """Replaces lines that must not be written, and the gateway's token wherever it turns up."""

    def __init__(self, *, token: str) -> None:
        super().__init__()
        self._secrets = tuple({token, quote(token, safe="")} - {""})

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: a line is changed, not dropped."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            return True  # a template that does not fit its arguments: logging itself reports it
        if any(part in text for part in UNSPEAKABLE):
            label = next(part for part in UNSPEAKABLE if part in text)
            record.msg, record.args = "%s (not shown: it may hold secrets)", (label.rstrip(":"),)
        elif any(secret in text for secret in self._secrets):
            for secret in self._secrets:
                text = text.replace(secret, MASK)
            record.msg, record.args = text.replace("%", "%%"), ()
        return True


def install_filter(*loggers: logging.Logger, token: str) -> SecretFilter:
    """Put one filter on every handler of `loggers`."""
    secret_filter = SecretFilter(token=token)
    for logger in loggers:
        for handler in logger.handlers:
            handler.addFilter(secret_filter)
    return secret_filter


def log_request(handler: Any) -> None:
    """One line for each request, at DEBUG, ERROR for a fault of ours. What was refused has a line of its own that says why.

    tornado's own prints the whole URL, `?token=` included.
    """
    status = handler.get_status()
    level = logging.ERROR if status >= 500 else logging.DEBUG
    request = handler.request
    access_log.log(
        level,
        "%d %s %s (%s) %.2fms",
        status,
        request.method,
        _scrub_uri(request.uri),
        request.remote_ip,
        1000.0 * request.request_time(),
    )
