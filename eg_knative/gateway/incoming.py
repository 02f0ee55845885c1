"""What stands between a connection and the application: the limit of a body's size, and the token that comes in the path.

tornado reads a body before a handler sees its request, and answers one above its own limit with a bare 400 and a closed
connection, which a client that is still sending never reads. And a token in the path must be gone before the path is matched
and logged.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from http.client import responses
from typing import Any

from tornado import httputil, web

from eg_knative.gateway import token

HARD_BODY_LIMIT = 64 * 1024**2
"""Bytes; a body that says it is larger is not read at all."""


class BoundedApplication(web.Application):
    """A tornado application that answers 413 as JSON to a body above `maximum_body_bytes`, and reads no more of it than it must.

    tornado's own limit answers an oversized body with a bare 400 and a closed connection.
    """

    def __init__(self, *args: Any, maximum_body_bytes: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._maximum_body_bytes = maximum_body_bytes

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        """See tornado."""
        return _Bounded(super().start_request(server_conn, request_conn), request_conn, limit=self._maximum_body_bytes)


class _Bounded(httputil.HTTPMessageDelegate):
    """Drops what is too much and answers when the body is over: a client that is still sending would not read the answer."""

    def __init__(self, inner: httputil.HTTPMessageDelegate, connection: httputil.HTTPConnection, *, limit: int) -> None:
        self._inner = inner
        self._connection = connection
        self._limit = limit
        self._received = 0
        self._excess = False
        self._answered = False

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        if isinstance(start_line, httputil.RequestStartLine):
            found, path = token.take_from_path(start_line.path)
            if found is not None:  # From here on it is a header like everybody's, and in no address that is logged.
                start_line = start_line._replace(path=path)
                headers.setdefault("Authorization", f"token {found}")
        length = headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and (len(length) > 15 or int(length) > self._limit):
            self._excess = True
            if len(length) > 15 or int(length) > HARD_BODY_LIMIT or headers.get("Expect"):
                self._answer()
            return None
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        if self._excess:
            return None
        self._received += len(chunk)
        if self._received > self._limit:
            self._excess = True
            self._inner.on_connection_close()
            return None
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        if not self._excess:
            self._inner.finish()
        elif not self._answered:
            self._answer()

    def on_connection_close(self) -> None:
        if not self._excess:
            self._inner.on_connection_close()

    def _answer(self) -> None:
        self._answered = True
        message = f"The body is larger than {self._limit} bytes. Send less; large data belongs in a file."
        body = json.dumps({"reason": "body_too_large", "message": message}).encode()
        headers = httputil.HTTPHeaders(
            {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        )
        self._connection.write_headers(httputil.ResponseStartLine("HTTP/1.1", 413, responses[413]), headers, body)
        self._connection.finish()
