"""The relay of one kernel: what happens to the kernel, and what that means for its clients.

It exists so that a WebSocket survives its kernel and a session survives its WebSocket. Which sessions there are is a matter of
`session_register`, what they are told of `kernel_news`. It does not promise that a message reaches a client, and it knows
neither HTTP nor who may connect.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import zmq

from eg_knative.errors import ChannelError
from eg_knative.gateway import kernel_news, synthetic
from eg_knative.gateway.channel_proofs import ChannelProofs
from eg_knative.gateway.client_session import RelayClient
from eg_knative.gateway.orphans import Orphans
from eg_knative.gateway.relayed_kernel import KernelEventLike, RelayedKernel
from eg_knative.gateway.session_register import SessionRegister
from eg_knative.wire.channels import ChannelLimits, ChannelSet
from eg_knative.wire.identities import primary_identity, session_identity
from eg_knative.wire.jupyter_messages import Message

if TYPE_CHECKING:
    from eg_knative.wire.control import ConnectionInfo

log = logging.getLogger(__name__)

CLOSE_GOING_AWAY = 1001
CLOSE_KERNEL_GONE = 4410


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelayLimits:
    """`parked`: sessions without a connection that a kernel keeps, and `parked_seconds` how long while others are connected.

    `proof_seconds`: how long a client's messages wait for a kernel that does not answer, before they are sent all the same.
    `restart_seconds`: how long a restart may take before its end is taken for granted. `return_seconds`: how long after the
    start of a gateway messages are kept for sessions of the one before, which JupyterLab brings back within half a minute.
    """

    parked: int = 4
    parked_seconds: float = 600.0
    proof_seconds: float = 30.0
    restart_seconds: float = 120.0
    return_seconds: float = 60.0
    channels: ChannelLimits = dataclasses.field(default_factory=ChannelLimits)


class KernelRelay:
    """All clients of one kernel. Use it on one event loop; `close` it there too."""

    def __init__(
        self,
        *,
        kernel: RelayedKernel,
        context: zmq.Context[zmq.Socket[bytes]],
        limits: RelayLimits,
        on_activity: Callable[[KernelRelay], None] | None = None,
    ) -> None:
        """Raises ChannelError when the kernel's channels cannot be connected."""
        self.kernel = kernel
        self.reason: str | None = None
        self.on_activity = on_activity
        self._context = context
        self._limits = limits
        self._phase = "running"  # or restarting, dead
        self._gone = False
        self._proofs = ChannelProofs(kernel_id=kernel.kernel_id, seconds=limits.proof_seconds)
        self._overdue: asyncio.TimerHandle | None = None
        first = kernel.take_channels()
        self._sessions = SessionRegister(
            first=self._open_channels(primary_identity(kernel.connection)) if first is None else first,
            adopted=first is None,
            open_channels=lambda session_id: self._open_channels(session_identity(session_id)),
            close_channels=self._close_channels,
            orphans=Orphans(limits=limits.channels.backlog, seconds=limits.return_seconds),
            parked=limits.parked,
            parked_seconds=limits.parked_seconds,
            on_activity=self._active,
        )
        self._stop_listening = kernel.add_listener(self.on_event)

    @property
    def kernel_id(self) -> str:
        return self.kernel.kernel_id

    @property
    def execution_state(self) -> str:
        """starting, idle, busy, restarting or dead."""
        return self._sessions.watched.execution_state if self._phase == "running" else self._phase

    @property
    def last_activity(self) -> float:
        """Seconds since the epoch of the last message on iopub."""
        return self._sessions.watched.status.last_activity

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return sum(session.client is not None for session in self._sessions)

    # clients

    def connect(self, client: RelayClient) -> None:
        """A client's connection is open: it gets what was kept for its session, then the kernel's status, then whatever comes.

        Raises ChannelError when no channels can be connected for it.
        """
        session = self._sessions.connect(client)
        # JupyterLab connects anew whenever it hears `restarting`: said again to who comes back, that would never end.
        state = "starting" if self._phase == "restarting" else self.execution_state
        session.say(synthetic.status(state, session=session.channels.kernel_session))
        self._sessions.tidy()

    def disconnect(self, client: RelayClient, unsent: tuple[synthetic.Entry, ...] = ()) -> None:
        """A client's connection is closed. `unsent`: what it was given and could not send."""
        self._sessions.disconnect(client, unsent)

    def receive(self, client: RelayClient, channel: str, message: Message) -> None:
        """Something from a client for the kernel. What cannot be sent is answered here."""
        session = self._sessions.get(client.session_id)
        if session is None:
            return
        try:
            if self._phase == "dead":
                raise ChannelError(self.reason or "The kernel is dead.", reason="KernelDied")
            session.channels.send(channel, message)
        except ChannelError as error:
            log.warning("Kernel %s: a %s was not sent: %s", self.kernel_id, message.kind, error.message)
            name = "KernelDied" if self._phase == "dead" else "TooManyMessages"
            kernel_news.refuse(session, channel, message, name=name, reason=error.message)

    # the kernel

    def on_event(self, event: KernelEventLike) -> None:
        """Something happened to the kernel."""
        if self._gone:
            return
        if event.kind == "died" and self._phase != "dead":
            self._died(event.message or "the kernel process ended", again=_starts_again(event.exit))
        elif event.kind == "gone":
            self._gone = True
            if self._phase != "dead":
                self._died(event.message or "the kernel is gone", again=False)
        elif event.kind == "restarting" and self._phase != "restarting":
            self._restarting()
        elif event.kind == "restarted":
            self._restarted(event.connection or self.kernel.connection)

    def close(self, *, code: int = CLOSE_GOING_AWAY, reason: str = "The gateway is going away.") -> None:
        """Close every connection and socket. Nothing is said about the kernel."""
        self._stop_listening()
        self.on_activity = None
        self._expect_restart(False)
        self._sessions.close(code=code, reason=reason)

    @property
    def unfinished(self) -> bool:
        """Closed, and something of it still runs."""
        return self._proofs.ending

    async def closed(self) -> None:
        """Wait until nothing of a closed relay runs any more."""
        await self._proofs.ended()

    def end(self, reason: str) -> None:
        """The kernel was shut down: its clients hear `dead` and are closed."""
        if self._phase != "dead":
            self.reason = reason
            self._phase = "dead"
            kernel_news.fail_pending(self._sessions, name="KernelDied", reason=reason, again=False)
            kernel_news.announce(self._sessions, "dead")
        self.close(code=CLOSE_KERNEL_GONE, reason=reason[:120])

    def _died(self, why: str, *, again: bool) -> None:
        self._expect_restart(again)
        self.reason = why
        self._phase = "restarting" if again else "dead"
        log.warning("Kernel %s died: %s", self.kernel_id, why)
        for channels in self._all_channels():
            channels.read_all()
        kernel_news.tell_of_death(self._sessions, why=why, again=again)
        kernel_news.fail_pending(self._sessions, name="KernelDied", reason=why, again=again)
        kernel_news.announce(self._sessions, self._phase)
        for channels in self._all_channels():
            self._disconnect(channels)
        self._active()

    def _restarting(self) -> None:
        """By request. Clients hear `starting`: JupyterLab takes `restarting` for a crash and says so in a dialog."""
        self._expect_restart(True)
        self._phase = "restarting"
        for channels in self._all_channels():
            channels.read_all()
            self._disconnect(channels)
        kernel_news.abort_pending(self._sessions)
        kernel_news.announce(self._sessions, "starting")
        self._active()

    def _restarted(self, connection: ConnectionInfo) -> None:
        if any(not channels.held for channels in self._all_channels()):
            self._restarting()  # only now do we hear of it
        self._expect_restart(False)
        self._phase = "running"
        self.reason = None
        for channels in self._all_channels():
            channels.reconnect(connection)
            self._proofs.begin(channels)
        kernel_news.announce(self._sessions, "starting")
        self._active()

    def _expect_restart(self, expected: bool) -> None:
        """A restart that nobody reports the end of must not hold messages back for ever."""
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = None
        if expected:
            self._overdue = asyncio.get_running_loop().call_later(self._limits.restart_seconds, self._restart_overdue)

    def _restart_overdue(self) -> None:
        log.warning("Kernel %s: no end of its restart was reported within %g s.", self.kernel_id, self._limits.restart_seconds)
        self._restarted(self.kernel.connection)

    # channels

    def _open_channels(self, identity: bytes) -> ChannelSet:
        channels = ChannelSet(
            context=self._context, connection=self.kernel.connection, identity=identity, limits=self._limits.channels
        )
        if self._phase == "running":
            self._proofs.begin(channels)
        else:
            channels.disconnect()
        return channels

    def _disconnect(self, channels: ChannelSet) -> None:
        """Until the next process is there. A proof that goes on would fail, and let go what is to wait."""
        self._proofs.cancel(channels)
        channels.disconnect()

    def _all_channels(self) -> Iterator[ChannelSet]:
        return self._sessions.all_channels()

    def _close_channels(self, channels: ChannelSet) -> None:
        self._proofs.cancel(channels)
        channels.close()

    def _active(self) -> None:
        if self.on_activity is not None:
            self.on_activity(self)


def _starts_again(end: Any) -> bool:
    if end is None:
        return False
    restarted = end.get("restarted") if isinstance(end, dict) else getattr(end, "restarted", False)
    return bool(restarted)
