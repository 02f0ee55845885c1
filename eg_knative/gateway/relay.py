"""The relay of one kernel: its client sessions, what its clients are told when something happens to it, and how active it is.

It exists so that a WebSocket survives its kernel and a session survives its WebSocket. Requests that a dead or restarted kernel
will never answer are answered here. It does not promise that a message reaches a client, and it knows neither HTTP nor who may
connect.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import zmq

from eg_knative.errors import ChannelError
from eg_knative.gateway import synthetic
from eg_knative.gateway.client_session import ClientSession, RelayClient
from eg_knative.gateway.relayed_kernel import KernelEventLike, RelayedKernel
from eg_knative.wire.backlog import Backlog
from eg_knative.wire.channels import ChannelLimits, ChannelSet, Pending, primary_identity, session_identity
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
        self._sessions: dict[str, ClientSession] = {}
        self._proofs: dict[ChannelSet, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._orphans = Backlog(limits.channels.backlog)
        self._began = time.monotonic()
        self._overdue: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._unowned = kernel.take_channels()
        self._adopted = self._unowned is None  # nobody connected it for us: another gateway's clients may have used it before
        if self._unowned is None:
            self._unowned = self._new_channels(primary_identity(kernel.connection))
        self._watched = self._unowned
        self._watch()
        self._stop_listening = kernel.add_listener(self.on_event)

    @property
    def kernel_id(self) -> str:
        return self.kernel.kernel_id

    @property
    def execution_state(self) -> str:
        """starting, idle, busy, restarting or dead."""
        return self._watched.execution_state if self._phase == "running" else self._phase

    @property
    def last_activity(self) -> float:
        """Seconds since the epoch of the last message on iopub."""
        return self._watched.last_activity

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return sum(session.client is not None for session in self._sessions.values())

    # clients

    def connect(self, client: RelayClient) -> None:
        """A client's connection is open: it gets what was kept for its session, then the kernel's status, then whatever comes.

        Raises ChannelError when no channels can be connected for it.
        """
        session = self._sessions.get(client.session_id)
        if session is None:
            channels, self._unowned = self._unowned, None
            if channels is None:
                channels = self._new_channels(session_identity(client.session_id))
            else:
                for entry in channels.take_kept():
                    self._orphans.push(*entry)
            session = ClientSession(session_id=client.session_id, channels=channels, reroute=self._owner_of)
            session.overhears = self._adopted and channels is self._watched
            self._sessions[client.session_id] = session
        session.connect(client)
        session.say(*self._take_orphans(client.session_id))
        session.say(synthetic.status(self.execution_state, session=session.channels.kernel_session))
        self._tidy()

    def disconnect(self, client: RelayClient, unsent: tuple[synthetic.Entry, ...] = ()) -> None:
        """A client's connection is closed. `unsent`: what it was given and could not send."""
        session = self._sessions.get(client.session_id)
        if session is not None and session.disconnect(client, unsent):
            self._tidy()

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
            if channel != "stdin" and message.kind.endswith("_request"):
                lost = Pending(channel=channel, kind=message.kind, header=message.parts[0])
                name = "KernelDied" if self._phase == "dead" else "TooManyMessages"
                kernel_session = session.channels.kernel_session
                session.say(*synthetic.failed(lost, name=name, reason=error.message, session=kernel_session))

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
        if self._sweep is not None:
            self._sweep.cancel()
        for session in self._sessions.values():
            if session.client is not None:
                session.client.end(code=code, reason=reason)
        for channels in list(self._all_channels()):
            self._close_channels(channels)
        self._sessions.clear()
        self._unowned = None

    @property
    def unfinished(self) -> bool:
        """Closed, and something of it still runs."""
        return bool(self._ending)

    async def closed(self) -> None:
        """Wait until nothing of a closed relay runs any more."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    def end(self, reason: str) -> None:
        """The kernel was shut down: its clients hear `dead` and are closed."""
        if self._phase != "dead":
            self.reason = reason
            self._phase = "dead"
            self._fail_pending("KernelDied", reason)
            self._announce("dead")
        self.close(code=CLOSE_KERNEL_GONE, reason=reason[:120])

    def _died(self, why: str, *, again: bool) -> None:
        self._expect_restart(again)
        self.reason = why
        self._phase = "restarting" if again else "dead"
        what_now = "It is being started again." if again else "It is not started again: restart it to go on."
        text = f"The kernel died: {why.rstrip('.')}. Its variables are gone. {what_now}\n"
        log.warning("Kernel %s died: %s", self.kernel_id, why)
        for channels in self._all_channels():
            channels.read_all()
        for session in self._sessions.values():
            pending = [request for request in session.channels.pending.values() if request.kind == "execute_request"]
            parent = pending[0].header if pending else b"{}"
            session.say(synthetic.stderr(text, session=session.channels.kernel_session, parent=parent))
        self._fail_pending("KernelDied", why)
        self._announce(self._phase)
        for channels in self._all_channels():
            channels.disconnect()
        self._active()

    def _restarting(self) -> None:
        """By request. Clients hear `starting`: JupyterLab takes `restarting` for a crash and says so in a dialog."""
        self._expect_restart(True)
        self._phase = "restarting"
        for channels in self._all_channels():
            channels.read_all()
            channels.disconnect()
        for session in self._sessions.values():
            again = []
            for request in session.channels.take_pending().values():
                if request.kind == "kernel_info_request":
                    again.append(request)
                else:
                    session.say(*synthetic.aborted(request, session=session.channels.kernel_session))
            _ask_again(session.channels, again)
        self._announce("starting")
        self._active()

    def _restarted(self, connection: ConnectionInfo) -> None:
        if any(not channels.held for channels in self._all_channels()):
            self._restarting()  # only now do we hear of it
        self._expect_restart(False)
        self._phase = "running"
        self.reason = None
        for channels in self._all_channels():
            channels.reconnect(connection)
            self._prove(channels)
        self._announce("starting")
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

    def _fail_pending(self, name: str, reason: str) -> None:
        for session in self._sessions.values():
            again = []
            for request in session.channels.take_pending().values():
                if request.kind == "kernel_info_request" and self._phase == "restarting":
                    again.append(request)  # an error would leave JupyterLab without the kernel's language for good
                else:
                    answer = synthetic.failed(request, name=name, reason=reason, session=session.channels.kernel_session)
                    session.say(*answer)
            session.channels.hold()
            _ask_again(session.channels, again)

    def _announce(self, state: str) -> None:
        for session in self._sessions.values():
            session.say(synthetic.status(state, session=session.channels.kernel_session))

    # channels

    def _new_channels(self, identity: bytes) -> ChannelSet:
        channels = ChannelSet(
            context=self._context, connection=self.kernel.connection, identity=identity, limits=self._limits.channels
        )
        if self._phase == "running":
            self._prove(channels)
        else:
            channels.disconnect()
        return channels

    def _prove(self, channels: ChannelSet) -> None:
        self._cancel_proof(channels)
        self._proofs[channels] = asyncio.get_running_loop().create_task(self._proof(channels))

    async def _proof(self, channels: ChannelSet) -> None:
        try:
            await channels.prepare(timeout=self._limits.proof_seconds)
        except ChannelError as error:
            log.warning("Kernel %s: %s Messages are sent to it all the same.", self.kernel_id, error.message)
            channels.release()
        except Exception:
            log.exception("Kernel %s: its channels could not be proven; messages are sent to it all the same.", self.kernel_id)
            channels.release()
        if self._proofs.get(channels) is asyncio.current_task():
            del self._proofs[channels]

    def _all_channels(self) -> Iterator[ChannelSet]:
        if self._unowned is not None:
            yield self._unowned
        for session in self._sessions.values():
            yield session.channels

    def _close_channels(self, channels: ChannelSet) -> None:
        self._cancel_proof(channels)
        channels.close()

    def _cancel_proof(self, channels: ChannelSet) -> None:
        proof = self._proofs.pop(channels, None)
        if proof is not None:
            proof.cancel()
            self._ending.add(proof)
            proof.add_done_callback(self._ending.discard)

    def _watch(self) -> None:
        self._watched.on_state = lambda _: self._active()

    def _active(self) -> None:
        if self.on_activity is not None:
            self.on_activity(self)

    def _owner_of(self, session: ClientSession, channel: str, message: Message) -> ClientSession | None:
        """A reply to a request that was made through an earlier gateway process goes to the session that made it.

        Clients put their session id into their messages' headers (JupyterLab does; it is the one of the URL).
        """
        if channel == "iopub" and time.monotonic() - self._began > self._limits.return_seconds:
            session.overhears = False
        asked_by = message.parent.get("session")
        if asked_by == session.session_id or not isinstance(asked_by, str):
            return None
        owner = self._sessions.get(asked_by)
        if owner is None:
            self._orphans.push(channel, message)  # it may come yet; this session gets it too, should it be its own after all
        return None if channel == "iopub" else owner

    def _take_orphans(self, session_id: str) -> list[synthetic.Entry]:
        """What came for a session before it was here: between a gateway's start and its clients' return."""
        if not len(self._orphans):
            return []
        mine = []
        young = time.monotonic() - self._began < self._limits.return_seconds
        for entry in self._orphans.drain():
            if entry[1].parent.get("session") == session_id:
                mine.append(entry)
            elif young:
                self._orphans.push(*entry)
        return mine

    def _tidy(self) -> None:
        """Let go of sessions that were away too long, or are too many; the last channels stay, to know the kernel's state."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        parked = sorted((s for s in self._sessions.values() if s.client is None), key=lambda s: s.parked_at)
        connected = len(parked) < len(self._sessions)
        old = time.monotonic() - self._limits.parked_seconds
        surplus = [s for i, s in enumerate(parked) if len(parked) - i > self._limits.parked or (connected and s.parked_at <= old)]
        for session in surplus:
            del self._sessions[session.session_id]
            if session.channels is self._watched:
                self._watched = next(self._all_channels())
                self._watch()
            self._close_channels(session.channels)
        if connected and len(parked) > len(surplus):
            self._sweep = asyncio.get_running_loop().call_later(self._limits.parked_seconds + 1, self._tidy)


class Relays:
    """The relays of one gateway process, by kernel id."""

    def __init__(self, *, context: zmq.Context[zmq.Socket[bytes]], limits: RelayLimits | None = None) -> None:
        self._context = context
        self._limits = limits or RelayLimits()
        self._relays: dict[str, KernelRelay] = {}
        self._ending: set[KernelRelay] = set()

    def attach(self, kernel: RelayedKernel, *, on_activity: Callable[[KernelRelay], None] | None = None) -> KernelRelay:
        """Begin to relay a kernel, or find the relay that does. Raises ChannelError when its channels cannot be connected."""
        relay = self._relays.get(kernel.kernel_id)
        if relay is None:
            relay = KernelRelay(kernel=kernel, context=self._context, limits=self._limits, on_activity=on_activity)
            self._relays[kernel.kernel_id] = relay
        return relay

    def get(self, kernel_id: str) -> KernelRelay | None:
        """The relay of an attached kernel."""
        return self._relays.get(kernel_id)

    def detach(self, kernel_id: str, *, reason: str = "The kernel was shut down.") -> None:
        """The kernel is gone for good: its clients hear it and are closed. Idempotent."""
        relay = self._relays.pop(kernel_id, None)
        if relay is not None:
            relay.end(reason)
            self._ending = {ending for ending in self._ending if ending.unfinished} | {relay}

    async def close(self) -> None:
        """The gateway goes away, kernels live on: connections are closed with 1001."""
        relays = list(self._relays.values())
        self._relays.clear()
        for relay in relays:
            relay.close()
            self._ending.add(relay)
        for relay in tuple(self._ending):
            await relay.closed()
        self._ending.clear()


def _starts_again(end: Any) -> bool:
    if end is None:
        return False
    restarted = end.get("restarted") if isinstance(end, dict) else getattr(end, "restarted", False)
    return bool(restarted)


def _ask_again(channels: ChannelSet, requests: list[Pending]) -> None:
    """Put kernel_info_requests to the next kernel process; they carry nothing but their header."""
    for request in requests:
        channels.send(request.channel, (request.header, b"{}", b"{}", b"{}"))
