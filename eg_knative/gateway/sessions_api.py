"""GET, POST, PATCH and DELETE /api/sessions: a path and its kernel.

EG's own session manager answers synchronously where jupyter_server's handlers await, so that all but the first POST fail with
500. Here is the same API in full. Gateway clients never call it (sessions stay on the notebook server); scripts do. Sessions
live in memory: a restarted gateway has the kernels and no sessions, as EG. A kernel started here gets no environment but the
operator's.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import uuid
from typing import Any

from enterprise_gateway.mixins import CORSMixin
from jupyter_server.services.sessions.handlers import SessionsAPIHandler

from eg_knative.errors import BadRequestError
from eg_knative.gateway.handlers import require_listing
from eg_knative.gateway.kernels import GatewayKernels
from eg_knative.gateway.requests import GatewayHandler, permitted
from eg_knative.processproxies.http import ReasonedHTTPError


@dataclasses.dataclass(kw_only=True)
class Session:
    """One session: what a client calls its document, and the kernel behind it."""

    session_id: str
    path: str
    name: str
    type: str
    kernel_id: str

    def model(self, kernels: GatewayKernels) -> dict[str, Any]:
        """As jupyter_server shapes it."""
        model: dict[str, Any] = {
            "id": self.session_id,
            "path": self.path,
            "name": self.name,
            "type": self.type,
            "kernel": kernels.kernel_model(self.kernel_id),
        }
        if self.type == "notebook":
            model["notebook"] = {"path": self.path, "name": self.name}
        return model


class Sessions:
    """All sessions. One whose kernel is gone is gone as well."""

    def __init__(self, kernels: GatewayKernels) -> None:
        self._kernels = kernels
        self._sessions: dict[str, Session] = {}
        self._lock = asyncio.Lock()

    def all(self) -> list[Session]:
        """The living ones."""
        self._sessions = {key: session for key, session in self._sessions.items() if session.kernel_id in self._kernels}
        return list(self._sessions.values())

    def get(self, session_id: str) -> Session:
        """Raises 404."""
        for session in self.all():
            if session.session_id == session_id:
                return session
        raise ReasonedHTTPError(404, reason="unknown_session", message=f"There is no session {session_id}.")

    async def create(self, *, path: str, name: str, type: str, kernel_name: str | None, kernel_id: str | None) -> Session:
        """The session of `path`, made if there is none. Raises what GatewayKernels.start_kernel raises."""
        async with self._lock:  # two requests for one path must not start two kernels
            for session in self.all():
                if session.path == path:
                    return session
            if kernel_id is None:
                kernel_id = await self._kernels.start_kernel(path=path, kernel_name=kernel_name)
            else:
                self._kernels.check_kernel_id(kernel_id)
            session = Session(session_id=str(uuid.uuid4()), path=path, name=name, type=type, kernel_id=kernel_id)
            self._sessions[session.session_id] = session
            return session

    async def use_kernel(self, session: Session, *, kernel_name: str | None, kernel_id: str | None) -> None:
        """Give the session another kernel and end the one that it had, unless another session has it too."""
        before = session.kernel_id
        if kernel_id is None:
            kernel_id = await self._kernels.start_kernel(path=session.path, kernel_name=kernel_name)
        else:
            self._kernels.check_kernel_id(kernel_id)
        session.kernel_id = kernel_id
        if before != kernel_id and not any(other.kernel_id == before for other in self.all()) and before in self._kernels:
            await self._kernels.shutdown_kernel(before)

    async def delete(self, session_id: str) -> None:
        """End the session and its kernel. Raises 404."""
        session = self.get(session_id)
        del self._sessions[session_id]
        if session.kernel_id in self._kernels:
            await self._kernels.shutdown_kernel(session.kernel_id)


def _text(body: dict[str, Any], key: str, fallback: str | None = None) -> str:
    value = body.get(key, fallback)
    if not isinstance(value, str):
        raise BadRequestError(f"{key} is missing or not a string. Send it.", field=key)
    return value


def _kernel(body: dict[str, Any]) -> tuple[str | None, str | None]:
    """Name and id of the wanted kernel."""
    kernel = body.get("kernel") or {}
    if not isinstance(kernel, dict):
        raise BadRequestError('kernel is not an object. Send {"name": …} or {"id": …}.', field="kernel")
    for key in ("name", "id"):
        if kernel.get(key) is not None and not isinstance(kernel[key], str):
            raise BadRequestError(f"kernel.{key} is not a string.", field=f"kernel.{key}")
    return kernel.get("name") or None, kernel.get("id") or None


def _flatten(body: dict[str, Any]) -> dict[str, Any]:
    """The older form, `{"notebook": {"path": …}}`, as the newer one."""
    notebook = body.get("notebook")
    if isinstance(notebook, dict) and "path" in notebook:
        return {**body, "path": notebook["path"], "type": "notebook"}
    return body


class _SessionsHandler(GatewayHandler, CORSMixin, SessionsAPIHandler):  # type: ignore[misc]  # EG has no types
    @property
    def sessions(self) -> Sessions:
        """The sessions of this gateway."""
        sessions: Sessions = self.settings["egknative_sessions"]
        return sessions

    @property
    def kernels(self) -> GatewayKernels:
        """The kernels of this gateway."""
        kernels: GatewayKernels = self.settings["kernel_manager"]
        return kernels


class SessionRootHandler(_SessionsHandler):
    """/api/sessions."""

    @permitted
    async def get(self) -> None:
        """List the sessions."""
        require_listing(self.settings)
        self.finish(json.dumps([session.model(self.kernels) for session in self.sessions.all()]))

    @permitted
    async def post(self) -> None:
        """Make a session and its kernel, or return the one that the path has."""
        body = _flatten(self.get_json_object())
        kernel_name, kernel_id = _kernel(body)
        session = await self.sessions.create(
            path=_text(body, "path"),
            name=_text(body, "name", ""),
            type=_text(body, "type", "notebook"),
            kernel_name=kernel_name,
            kernel_id=kernel_id,
        )
        self.set_header("Location", f"{self.settings['base_url'].rstrip('/')}/api/sessions/{session.session_id}")
        self.set_status(201)
        self.finish(json.dumps(session.model(self.kernels)))


class SessionHandler(_SessionsHandler):
    """/api/sessions/<id>."""

    @permitted
    async def get(self, session_id: str) -> None:
        """One session."""
        self.finish(json.dumps(self.sessions.get(session_id).model(self.kernels)))

    @permitted
    async def patch(self, session_id: str) -> None:
        """Rename the session or change its kernel."""
        body = _flatten(self.get_json_object())
        session = self.sessions.get(session_id)
        kernel_name, kernel_id = _kernel(body)
        renamed = {key: _text(body, key) for key in ("path", "name", "type") if key in body}
        for key, value in renamed.items():
            setattr(session, key, value)
        if kernel_name is not None or kernel_id is not None:
            await self.sessions.use_kernel(session, kernel_name=kernel_name, kernel_id=kernel_id)
        self.finish(json.dumps(session.model(self.kernels)))

    @permitted
    async def delete(self, session_id: str) -> None:
        """End the session and its kernel."""
        await self.sessions.delete(session_id)
        self.set_status(204)
        self.finish()


_SESSION_ID = r"(?P<session_id>\w+-\w+-\w+-\w+-\w+)"

session_handlers: list[tuple[str, type[Any]]] = [
    (rf"/api/sessions/{_SESSION_ID}", SessionHandler),
    (r"/api/sessions", SessionRootHandler),
]
