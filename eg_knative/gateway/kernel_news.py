"""What a kernel's client sessions are told when something happens to the kernel, and who answers what it will never answer.

It exists because a client that is owed a reply waits for ever, and because what JupyterLab shows depends on the words: which
status it hears, and whether a request failed or was aborted. It keeps nothing, and it does not decide what happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from eg_knative.gateway import synthetic
from eg_knative.gateway.client_session import ClientSession
from eg_knative.wire.jupyter_messages import Message
from eg_knative.wire.outgoing import Pending


def announce(sessions: Iterable[ClientSession], state: str) -> None:
    """The kernel is `state` now: starting, idle, busy, restarting or dead."""
    for session in sessions:
        session.say(synthetic.status(state, session=session.channels.kernel_session))


def tell_of_death(sessions: Iterable[ClientSession], *, why: str, again: bool) -> None:
    """A line on standard error, in the cell that ran if there is one. `again`: the kernel is being started again."""
    what_now = "It is being started again." if again else "It is not started again: restart it to go on."
    text = f"The kernel died: {why.rstrip('.')}. Its variables are gone. {what_now}\n"
    for session in sessions:
        pending = [request for request in session.channels.pending.values() if request.kind == "execute_request"]
        parent = pending[0].header if pending else b"{}"
        session.say(synthetic.stderr(text, session=session.channels.kernel_session, parent=parent))


def fail_pending(sessions: Iterable[ClientSession], *, name: str, reason: str, again: bool) -> None:
    """The kernel is lost: every request without a reply gets an error of this name. `again`: it is being started again."""

    def failed(request: Pending, kernel_session: str) -> Iterable[synthetic.Entry]:
        return synthetic.failed(request, name=name, reason=reason, session=kernel_session)

    _settle(sessions, failed, again=again)


def abort_pending(sessions: Iterable[ClientSession]) -> None:
    """The kernel is restarted by request: every request without a reply is aborted."""

    def aborted(request: Pending, kernel_session: str) -> Iterable[synthetic.Entry]:
        return synthetic.aborted(request, session=kernel_session)

    _settle(sessions, aborted, again=True)


def refuse(session: ClientSession, channel: str, message: Message, *, name: str, reason: str) -> None:
    """A message could not be sent: if it asks for a reply, an error of this name is the reply."""
    if channel != "stdin" and message.kind.endswith("_request"):
        lost = Pending(channel=channel, kind=message.kind, header=message.parts[0])
        session.say(*synthetic.failed(lost, name=name, reason=reason, session=session.channels.kernel_session))


def _settle(
    sessions: Iterable[ClientSession], answer: Callable[[Pending, str], Iterable[synthetic.Entry]], *, again: bool
) -> None:
    """Answer what is pending, and hold back what clients send from here on.

    The next kernel process is asked for kernel_info itself: an error would leave JupyterLab without the kernel's language for
    good. These requests carry nothing but their header.
    """
    for session in sessions:
        channels = session.channels
        ask_again = []
        for request in channels.take_pending().values():
            if again and request.kind == "kernel_info_request":
                ask_again.append(request)
            else:
                session.say(*answer(request, channels.kernel_session))
        channels.hold()
        for request in ask_again:
            channels.send(request.channel, (request.header, b"{}", b"{}", b"{}"))
