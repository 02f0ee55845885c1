"""The launcher's HTTP: one delegate for tornado's server, small because every answer is one JSON object or the beats.

Token first, before a body is kept; bodies bounded in size and time; a line of the log for what went wrong inside, never for
what a client got wrong. tornado.web is left out on purpose: an idle member should cost little memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets, bind_unix_socket

from eg_launcher.beats import stream_beats
from eg_launcher.config import PROTOCOL
from eg_launcher.errors import ConfigurationError, RequestError
from eg_launcher.launcher import Launcher
from eg_launcher.protocol import LARGEST_BODY, number, parse_body, parse_promotion, token_matches

log = logging.getLogger("eg_launcher")

_BODY_SECONDS = 10.0
_IDLE_CONNECTION_SECONDS = 75.0
_LARGEST_HEAD = 16 * 1024

Answer = tuple[int, dict[str, Any]]


class Server:
    """Listens on the configured address for one launcher."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._server: HTTPServer | None = None
        self._path: str | None = None

    def start(self) -> None:
        """Begin to listen. Raises ConfigurationError when the address cannot be had."""
        self._server = HTTPServer(
            _Connections(self._launcher),
            max_header_size=_LARGEST_HEAD,
            max_body_size=LARGEST_BODY + 1,
            body_timeout=_BODY_SECONDS,
            idle_connection_timeout=_IDLE_CONNECTION_SECONDS,
        )
        try:
            self._server.add_sockets(self._sockets(self._launcher.config.listen))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot be listened on: {error}", field="listen") from error

    def _sockets(self, listen: str) -> list[socket.socket]:
        scheme, _, rest = listen.partition(":")
        if scheme == "unix":
            self._path = rest
            return [bind_unix_socket(rest, mode=0o600)]
        ip, _, port = rest.rpartition(":")
        return bind_sockets(int(port), address=ip.strip("[]"))

    async def stop(self) -> None:
        """Stop listening, drop connections, remove the socket file."""
        if self._server is not None:
            self._server.stop()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.close_all_connections(), 1.0)
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


class _Connections(httputil.HTTPServerConnectionDelegate):
    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._resources = Resources(launcher)

    def start_request(self, server_conn: object, request_conn: httputil.HTTPConnection) -> httputil.HTTPMessageDelegate:
        return _Request(self._launcher, self._resources, request_conn)


class _Request(httputil.HTTPMessageDelegate):
    """One request: check, read, answer."""

    def __init__(self, launcher: Launcher, resources: Resources, connection: httputil.HTTPConnection) -> None:
        self._launcher = launcher
        self._resources = resources
        self._connection = connection
        self._body = bytearray()
        self._received = 0
        self._refusal: RequestError | None = None
        self._answered = False
        self._head = httputil.RequestStartLine("", "", "")
        self._task: asyncio.Task[None] | None = None

    def headers_received(
        self, start_line: httputil.RequestStartLine | httputil.ResponseStartLine, headers: httputil.HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        self._head = start_line
        if not token_matches(authorization=headers.get("Authorization"), token_sha256=self._launcher.config.token_sha256):
            self._refusal = RequestError(401, "unauthorized", "The token is missing or wrong")
        length = headers.get("Content-Length", "0")
        if length.isdigit() and int(length) > LARGEST_BODY:
            self._too_large()
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self._received += len(chunk)
        if self._received > LARGEST_BODY:
            self._too_large()
        elif self._refusal is None:
            self._body += chunk
        return None

    def finish(self) -> None:
        if self._refusal is not None:
            self._answer(self._refusal.status, self._refusal.as_json())
        elif not self._answered:
            self._task = asyncio.create_task(self._handle(), name=f"{self._head.method} {self._head.path[:100]}")

    def on_connection_close(self) -> None:
        self._answered = True

    def _too_large(self) -> None:
        """Answer without having read all; tornado then closes the connection. Smaller bodies are read to their end, refused or
        not: a connection closed on unread data is reset, and its answer may be lost."""
        error = self._refusal or RequestError(413, "body_too_large", f"A body may have {LARGEST_BODY} bytes")
        self._answer(error.status, error.as_json())

    async def _handle(self) -> None:
        try:
            path, _, query = self._head.path.partition("?")
            if path == "/v1/beats" and self._head.method == "GET":
                interval = self._interval(query)
                await stream_beats(self._launcher, self._connection, interval_seconds=interval)
                return
            status, answer = await self._resources.answer(self._head.method, path, bytes(self._body))
        except RequestError as error:
            status, answer = error.status, error.as_json()
        except Exception:  # one request's defect is answered and logged; the launcher lives on
            log.exception("%s failed", self._head.method)
            status, answer = 500, {"reason": "internal_error", "message": "The launcher failed; its log says more"}
        self._answer(status, answer)

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        if self._answered:
            return
        self._answered = True
        body = json.dumps(answer).encode()
        headers = httputil.HTTPHeaders({"Content-Type": "application/json", "Content-Length": str(len(body))})
        line = httputil.ResponseStartLine("HTTP/1.1", status, http.client.responses.get(status, "Unknown"))
        written = self._connection.write_headers(line, headers, body)
        written.add_done_callback(lambda future: future.exception())  # the client went away; nobody is left to tell
        self._connection.finish()

    @staticmethod
    def _interval(query: str) -> float:
        values = parse_qs(query, max_num_fields=10).get("interval", ["5"])
        try:
            value: Any = float(values[0])
        except ValueError:
            value = values[0]
        return number({"interval": value}, "interval", default=5.0, least=0.1, most=60.0)


class Resources:
    """Everything but the beats: method, path and body to status and answer."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._table: dict[str, tuple[str, Callable[[bytes], Awaitable[Answer]]]] = {
            "/v1/health": ("GET", self._health),
            "/v1/connection": ("GET", self._connection),
            "/v1/usage": ("GET", self._usage),
            "/v1/promote": ("POST", self._promote),
            "/v1/restart": ("POST", self._restart),
            "/v1/interrupt": ("POST", self._interrupt),
            "/v1/signal": ("POST", self._signal),
            "/v1/shutdown": ("POST", self._shutdown),
            "/v1/beats": ("GET", self._health),
        }

    async def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Raises RequestError."""
        entry = self._table.get(path)
        if entry is None:
            raise RequestError(404, "unknown_resource", f"This launcher speaks /v{PROTOCOL}/ and has no such resource")
        if method != entry[0]:
            raise RequestError(405, "method_not_allowed", f"This resource is asked with {entry[0]}")
        return await entry[1](body)

    async def _health(self, _body: bytes) -> Answer:
        launcher = self._launcher
        return 200, {
            "protocol": PROTOCOL,
            "name": launcher.config.name,
            "boot_id": launcher.boot_id,
            "state": launcher.status.state,
            "message": launcher.status.message,
        }

    async def _connection(self, _body: bytes) -> Answer:
        return 200, self._launcher.connection_answer()

    async def _usage(self, _body: bytes) -> Answer:
        usage = await asyncio.get_running_loop().run_in_executor(None, lambda: self._launcher.usage(thorough=True))
        return 200, dataclasses.asdict(usage)

    async def _promote(self, body: bytes) -> Answer:
        return 200, await self._launcher.promote(parse_promotion(parse_body(body)))

    async def _restart(self, body: bytes) -> Answer:
        parse_body(body)
        return 200, await self._launcher.restart()

    async def _interrupt(self, body: bytes) -> Answer:
        parse_body(body)
        await self._launcher.interrupt()
        return 200, {}

    async def _signal(self, body: bytes) -> Answer:
        document = parse_body(body)
        if not isinstance(document.get("signal"), int):
            raise RequestError(400, "bad_request", "signal must be a number from 1 to 31", field="signal")
        self._launcher.signal(int(number(document, "signal", default=0, least=1, most=31)))
        return 200, {}

    async def _shutdown(self, body: bytes) -> Answer:
        grace = number(parse_body(body), "grace_seconds", default=5.0, least=0.0, most=3600.0)
        self._launcher.shutdown(grace_seconds=grace)
        return 202, {}
