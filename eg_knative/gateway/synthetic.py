"""What the gateway says to clients in a kernel's place, as whole messages.

It exists because a kernel that is gone cannot answer, and a client that is owed a reply waits for ever. Pure. The messages
carry the kernel's own session id: JupyterLab discards whatever it was handling when that id changes between two messages.
"""

from __future__ import annotations

from collections.abc import Iterable

from eg_knative.wire.jupyter_messages import Message, compose
from eg_knative.wire.outgoing import Pending

Entry = tuple[str, Message]


def status(state: str, *, session: str, parent: bytes = b"{}") -> Entry:
    """`execution_state` of the kernel: starting, idle, busy, restarting or dead."""
    return "iopub", compose("status", {"execution_state": state}, parent=parent, session=session)


def stderr(text: str, *, session: str, parent: bytes = b"{}") -> Entry:
    """A line on standard error; shown in the cell whose request is `parent`."""
    return "iopub", compose("stream", {"name": "stderr", "text": text}, parent=parent, session=session)


def failed(request: Pending, *, name: str, reason: str, session: str) -> Iterable[Entry]:
    """The answer to a request that was lost: an error on the cell, a reply with status error, and idle."""
    error = {"ename": name, "evalue": reason, "traceback": [f"{name}: {reason}"]}
    if request.kind == "execute_request":
        yield "iopub", compose("error", error, parent=request.header, session=session)
    yield request.channel, _reply(request, {"status": "error", **error}, session)
    yield status("idle", session=session, parent=request.header)


def aborted(request: Pending, *, session: str) -> Iterable[Entry]:
    """The answer to a request that a restart cut off, in the form in which ipykernel answers what it skips after an error."""
    yield request.channel, _reply(request, {"status": "aborted"}, session)
    yield status("idle", session=session, parent=request.header)


def _reply(request: Pending, content: dict[str, object], session: str) -> Message:
    return compose(request.kind.removesuffix("_request") + "_reply", content, parent=request.header, session=session)
