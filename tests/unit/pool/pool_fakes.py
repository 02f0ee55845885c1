"""A substrate, launchers and channels that fail on command and run in virtual time.

They are fakes for what the real ones cannot be made to show on demand: lost answers, lagging counts, races, deaths at
any moment. What the real ones do is tested in tests/integration/pool. A FakeLauncher keeps the launcher protocol's
promises: one claim per boot id, the same claim id again gets the same answer, a refusal leaves it ready.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import uuid
from collections.abc import Callable

from eg_knative.errors import AlreadyClaimedError, LauncherRefusedError, LaunchError, LauncherUnreachableError
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.manager import PoolManager
from eg_knative.settings import LocalSettings, PoolSettings, Settings
from eg_knative.specification import KernelSpecification, PoolConfiguration
from eg_knative.substrates.contract import Member, MemberGone, Room
from eg_knative.wire.control import (
    Beat,
    ClaimRecord,
    ClaimRequest,
    ConnectionAnswer,
    ConnectionInfo,
    KernelExit,
    Promotion,
    Restarted,
    Usage,
)


def specification(
    name: str = "python", *, env: dict[str, str] | None = None, start: str = "boot", **pool: object
) -> KernelSpecification:
    return KernelSpecification(
        name=name,
        display_name=name,
        language="python",
        argv=("python", "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        env=env or {},
        interrupt_mode="signal",
        substrate="fake",
        pool=PoolConfiguration(**pool),  # type: ignore[arg-type]
        start=start,  # type: ignore[arg-type]
    )


def request(kernel_id: str | None = None, **changes: object) -> ClaimRequest:
    plain = ClaimRequest(
        claim_id=uuid.uuid4().hex,
        kernel_id=kernel_id or str(uuid.uuid4()),
        kernel_name="python",
        username="alice",
        env={"KERNEL_USERNAME": "alice"},
        working_directory=None,
        attributes={"owner": "alice"},
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def connection(key: str) -> ConnectionInfo:
    return ConnectionInfo(
        ip="127.0.0.1",
        transport="tcp",
        shell_port=1,
        iopub_port=2,
        stdin_port=3,
        control_port=4,
        hb_port=5,
        key=key,
        signature_scheme="hmac-sha256",
        kernel_name="python",
    )


class FakeLauncher:
    """One launcher. Set the fault attributes to make it misbehave."""

    def __init__(self, *, member: Member, kernel_at_boot: bool = True) -> None:
        self.member = member
        self.boot_id = uuid.uuid4().hex
        self.state = "starting"
        self.kernel_state = "starting" if kernel_at_boot else "absent"
        self.kernel_at_boot = kernel_at_boot
        self.generation = 0
        self.exit: KernelExit | None = None
        self.claim: ClaimRequest | None = None
        self.claims_accepted: list[str] = []
        self.promotions_asked = 0
        self.reachable = True
        self.answers = True
        self.refusal: LauncherRefusedError | None = None
        self.promote_seconds = 0.001
        self.import_time_variables: tuple[str, ...] = ()
        self.holds: list[FakeHold] = []
        self._sequence = itertools.count(1)

    def beat(self) -> Beat:
        return Beat(
            protocol=1,
            name=self.member.name,
            boot_id=self.boot_id,
            sequence=next(self._sequence),
            state=self.state,
            message=None,
            kernel_state=self.kernel_state,
            kernel_generation=self.generation,
            kernel_started_by="fork",
            notice=None,
            idle_seconds=0.0,
            cpu_seconds=0.0,
            resident_bytes=1,
            restarts=0,
            claim_id=self.claim.claim_id if self.claim else None,
            kernel_id=self.claim.kernel_id if self.claim else None,
            exit=self.exit,
        )

    def change(self, **changes: object) -> None:
        """Change attributes and beat."""
        for name, value in changes.items():
            setattr(self, name, value)
        for hold in self.holds:
            hold.hear()

    def boot(self) -> None:
        if self.state == "starting":
            if self.kernel_at_boot:
                self.change(state="ready", kernel_state="idle", generation=1)
            else:
                self.change(state="ready")

    def fail_boot(self, message: str = "ModuleNotFoundError: No module named 'ipykernel'") -> None:
        ended = KernelExit(generation=1, code=1, signal=None, reason="exited", message=message, restarted=False)
        self.change(state="failed", kernel_state="dead", exit=ended)

    def silence(self) -> None:
        self.reachable = False
        for hold in self.holds:
            hold.lose()

    def speak(self) -> None:
        self.reachable = True
        self.change()

    def _check(self) -> None:
        if not self.reachable:
            raise LauncherUnreachableError("Nobody answers at the launcher's address.")


class FakeClient:
    """The client of one FakeLauncher."""

    def __init__(self, launcher: FakeLauncher) -> None:
        self.launcher = launcher
        self.closed = False

    async def connection(self, *, timeout: float = 5.0) -> ConnectionAnswer:
        await asyncio.sleep(0)
        self.launcher._check()
        claim = self.launcher.claim
        record = None
        if claim is not None:
            fields = {f.name: getattr(claim, f.name) for f in dataclasses.fields(claim) if f.name != "env"}
            record = ClaimRecord(**fields, claimed_at=1.0)
        return ConnectionAnswer(
            boot_id=self.launcher.boot_id,
            kernel_generation=max(1, self.launcher.generation),
            connection=connection("pool key" if claim is None else claim.claim_id),
            claim=record,
        )

    async def promote(self, claim: ClaimRequest, *, timeout: float) -> Promotion:
        launcher = self.launcher
        launcher.promotions_asked += 1
        launcher._check()
        if not launcher.answers:
            await asyncio.sleep(timeout)
            raise LauncherUnreachableError("The launcher did not answer in time.")
        await asyncio.sleep(launcher.promote_seconds / 2)
        launcher._check()
        if launcher.claim is not None and launcher.claim.claim_id != claim.claim_id:
            raise AlreadyClaimedError("The member is claimed.")
        if launcher.refusal is not None:
            raise launcher.refusal
        if launcher.state not in {"ready", "claimed"}:
            raise LauncherRefusedError("Not ready.", reason="not_ready", status=409)
        fresh = not launcher.kernel_at_boot or any(name in claim.env for name in launcher.import_time_variables)
        if launcher.claim is None:
            launcher.claims_accepted.append(claim.claim_id)
            launcher.claim = claim
            generation = launcher.generation + 1 if fresh else launcher.generation
            launcher.change(state="claimed", kernel_state="idle", generation=generation)
        await asyncio.sleep(launcher.promote_seconds / 2)
        launcher._check()
        return Promotion(
            boot_id=launcher.boot_id,
            claim_id=claim.claim_id,
            kernel_generation=launcher.generation,
            connection=connection(claim.claim_id),
            started="fresh" if fresh else "running",
            notice="An import-time variable was set." if fresh and launcher.kernel_at_boot else None,
            phases={"total": 0.001},
        )

    async def restart(self, *, timeout: float) -> Restarted:
        self.launcher._check()
        self.launcher.change(kernel_state="restarting")
        await asyncio.sleep(0.01)
        self.launcher.change(kernel_state="idle", generation=self.launcher.generation + 1)
        assert self.launcher.claim is not None
        return Restarted(
            kernel_generation=self.launcher.generation,
            connection=connection(self.launcher.claim.claim_id),
            started_by="spare",
            phases={},
        )

    async def usage(self, *, timeout: float = 5.0) -> Usage:
        self.launcher._check()
        return Usage(cpu_seconds=1.0, resident_bytes=1, proportional_bytes=None, processes=1, threads=1, memory_limit_bytes=None)

    async def close(self) -> None:
        self.closed = True


class FakeHold:
    """The hold of one FakeLauncher: a beat at every change, none by time alone."""

    def __init__(self, *, launcher: FakeLauncher, on_beat: Callable[[Beat], None], on_lost: Callable[[str], None]) -> None:
        self._launcher = launcher
        self._on_beat = on_beat
        self._on_lost = on_lost
        self._changed = asyncio.Event()
        self.latest: Beat | None = None
        self.open = False

    def start(self) -> None:
        self.open = True
        self._launcher.holds.append(self)
        asyncio.get_running_loop().call_soon(self.hear)

    def hear(self) -> None:
        if self.open and self._launcher.reachable:
            self.latest = self._launcher.beat()
            self._changed.set()
            self._changed = asyncio.Event()
            self._on_beat(self.latest)

    def lose(self) -> None:
        if self.open:
            self._on_lost("The launcher closed the stream.")

    async def wait_beat(self, predicate: Callable[[Beat], bool], *, timeout: float) -> Beat:
        end = asyncio.get_running_loop().time() + timeout
        while self.open:
            if self.latest is not None and predicate(self.latest):
                return self.latest
            left = end - asyncio.get_running_loop().time()
            if left <= 0:
                break
            waiting = asyncio.ensure_future(self._changed.wait())
            try:
                await asyncio.wait({waiting}, timeout=left)
            finally:
                waiting.cancel()
        raise LauncherUnreachableError("The launcher did not say what was waited for.")

    async def close(self) -> None:
        self.open = False
        self._changed.set()
        if self in self._launcher.holds:
            self._launcher.holds.remove(self)


class FakeChannels:
    """Channels that only remember what was done with them."""

    def __init__(self, info: ConnectionInfo) -> None:
        self.connection = info
        self.rekeyed = 0
        self.closed = False

    def rekey(self, info: ConnectionInfo) -> None:
        assert not self.closed
        self.connection = info
        self.rekeyed += 1

    def close(self) -> None:
        self.closed = True


class FakeSubstrate:
    """A substrate in memory. `boot_seconds` None: a launcher boots only when told to; `lag_seconds`: how late `room` counts."""

    name = "fake"

    def __init__(self, *, capacity: int = 100, start_seconds: float = 0.1, boot_seconds: float | None = 0.4) -> None:
        self.capacity = capacity
        self.start_seconds = start_seconds
        self.boot_seconds = boot_seconds
        self.stop_seconds = 0.01
        self.lag_seconds = 0.0
        self.launchers: dict[str, FakeLauncher] = {}
        self.stopped: list[str] = []
        self.started: list[str] = []
        self.undone: list[str] = []
        self.most = 0
        self.start_error: LaunchError | None = None
        self.stop_errors = 0
        self.opened = self.closed = False
        self._starting: set[str] = set()
        self._counts: list[tuple[float, int]] = []
        self._gone: Callable[[MemberGone], None] = lambda event: None

    async def open(self, *, gone: Callable[[MemberGone], None]) -> None:
        self._gone = gone
        self.opened = True

    async def discover(self) -> tuple[Member, ...]:
        return tuple(launcher.member for launcher in self.launchers.values())

    async def start(self, *, specification: KernelSpecification, member_name: str) -> Member:
        self.started.append(member_name)
        if self.running >= self.capacity:
            raise LaunchError("The machine is full. Shut kernels down.", reason="quota")
        self._starting.add(member_name)
        self._count()
        try:
            await asyncio.sleep(self.start_seconds)
            if self.start_error is not None:
                raise self.start_error
            member = Member(
                name=member_name,
                substrate=self.name,
                kernelspec=specification.name,
                specification_digest=specification.digest,
                address=f"unix:/{member_name}",
                token="token",
                created_at=asyncio.get_running_loop().time(),
                where={"pid": "1"},
                started_by="fork",
            )
        except BaseException:
            self.undone.append(member_name)
            raise
        finally:
            self._starting.discard(member_name)
            self._count()
        launcher = FakeLauncher(member=member, kernel_at_boot=specification.start != "claim")
        launcher.import_time_variables = specification.pool.import_time_variables
        self.launchers[member_name] = launcher
        self._count()
        if self.boot_seconds is not None:
            asyncio.get_running_loop().call_later(self.boot_seconds, launcher.boot)
        return member

    async def stop(self, *, member_name: str, grace_seconds: float) -> None:
        await asyncio.sleep(self.stop_seconds)
        if self.stop_errors > 0:
            self.stop_errors -= 1
            raise OSError("The API server is not there.")
        launcher = self.launchers.pop(member_name, None)
        self.stopped.append(member_name)
        if launcher is not None:
            launcher.reachable = False
        self._count()

    def die(self, member_name: str, message: str = "the launcher was killed") -> None:
        launcher = self.launchers.pop(member_name)
        launcher.silence()
        self._count()
        self._gone(MemberGone(name=member_name, reason="exited", message=message))

    def room(self) -> Room:
        now = asyncio.get_running_loop().time()
        known = [count for at, count in self._counts if at <= now - self.lag_seconds]
        members = max(0, self.capacity - (known[-1] if known else 0))
        return Room(members=members, message=None if members else "the machine is full")

    async def close(self) -> None:
        self.closed = True

    @property
    def running(self) -> int:
        return len(self.launchers) + len(self._starting)

    def _count(self) -> None:
        self.most = max(self.most, self.running)
        self._counts.append((asyncio.get_running_loop().time(), self.running))


class World:
    """A manager over a FakeSubstrate, and what happened. Make it on a running loop whose time is virtual."""

    def __init__(self, *, substrate: FakeSubstrate | None = None, prepare: bool = True, **pool: object) -> None:
        loop = asyncio.get_running_loop()
        self.substrate = substrate or FakeSubstrate()
        self.events: list[PoolEvent] = []
        self.channels: list[FakeChannels] = []
        self.prepare_seconds = 0.01
        self.prepare_error: Exception | None = None
        self.manager = PoolManager(
            substrates={"fake": self.substrate},  # type: ignore[dict-item]
            settings=Settings(local=LocalSettings(run_directory=None), pool=PoolSettings(**pool)),  # type: ignore[arg-type]
            prepare=self._prepare if prepare else None,  # type: ignore[arg-type]
            client_factory=self._client,  # type: ignore[arg-type]
            hold_factory=self._hold,  # type: ignore[arg-type]
            clock=loop.time,
            wall=loop.time,
        )
        self.manager.on_event.append(self.events.append)

    def launcher(self, name: str) -> FakeLauncher:
        return self.substrate.launchers[name]

    @property
    def launchers(self) -> list[FakeLauncher]:
        return list(self.substrate.launchers.values())

    def kinds(self, kind: str) -> list[PoolEvent]:
        return [event for event in self.events if event.kind == kind]

    def count(self, name: str = "python") -> dict[str, int]:
        pool = self.manager.status()["pools"][name]
        return {state: pool[state] for state in ("ready", "booting", "claimed", "retiring") if pool[state]}

    async def warm(self, *specifications: KernelSpecification, seconds: float = 3.0) -> None:
        await self.manager.open()
        self.manager.set_specifications({one.name: one for one in specifications})
        await asyncio.sleep(seconds)

    async def _prepare(self, info: ConnectionInfo) -> FakeChannels:
        await asyncio.sleep(self.prepare_seconds)
        if self.prepare_error is not None:
            raise self.prepare_error
        self.channels.append(FakeChannels(info))
        return self.channels[-1]

    def _client(self, *, address: str, token: str) -> FakeClient:
        return FakeClient(self.launcher(address.removeprefix("unix:/")))

    def _hold(
        self, *, client: FakeClient, interval: float, on_beat: Callable[[Beat], None], on_lost: Callable[[str], None]
    ) -> FakeHold:
        return FakeHold(launcher=client.launcher, on_beat=on_beat, on_lost=on_lost)
