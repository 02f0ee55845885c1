"""Whatever happens, in any order: the promises of the pool, tried by hypothesis in virtual time.

Claims, cancellations, deaths, silence, refusals, thieves, failing and hanging starts and stops, changed kernelspecs and
limits, a lagging view, gateways that come and go. After every step:

- no launcher has accepted two claims, and no member has two kernels;
- a member that accepted a claim is never offered again;
- no start goes beyond ceiling or total (checked at the moment of each start), and the substrate's own limit holds;
- the loop has met no defect.

At the end, with the faults gone: a changed kernelspec has no ready member of its old self, a claim succeeds, every
launcher is known to the pool (or somebody else's), and after the end of the gateway nothing runs.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import looptime
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from eg_knative.errors import EgKnativeError, LauncherRefusedError, LaunchError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.member import MemberState
from eg_knative.specification import KernelSpecification
from tests.unit.pool.pool_fakes import FakeLauncher, FakeSubstrate, World, request, specification

NAMES = ("a", "b")
LIMITS: dict[str, Any] = {"size": 2, "total": 3, "concurrent_starts": 2, "concurrent_launches": 2, "boot_timeout_seconds": 20.0}
moments = st.sampled_from([0.0, 0.005, 0.011, 0.1, 0.3, 0.5, 0.512, 1.0, 5.0, 60.0])
numbers = st.integers(0, 30)


def on_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a rule does happens on the machine's event loop, as it would in a gateway."""

    @functools.wraps(function)
    def run(machine: PoolMachine, *arguments: Any, **options: Any) -> Any:
        async def call() -> Any:
            return function(machine, *arguments, **options)

        return machine.run(call())

    return run


class PoolMachine(RuleBasedStateMachine):
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.loop: asyncio.AbstractEventLoop = looptime.new_event_loop(start=0)
        self.variant = dict.fromkeys(NAMES, 0)
        self.bounds = dict.fromkeys(NAMES, (1, 2))
        self.tasks: list[asyncio.Task[ClaimedKernel]] = []
        self.stolen: set[str] = set()
        self.all_launchers: dict[str, FakeLauncher] = {}
        self.violations: list[str] = []

    # -- what the machine is made of ------------------------------------------------------------------------------

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def let(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    def specification(self, name: str) -> KernelSpecification:
        floor, ceiling = self.bounds[name]
        return specification(
            name,
            env={"VARIANT": str(self.variant[name])},
            floor=floor,
            ceiling=ceiling,
            maximum_age_seconds=40.0,
            import_time_variables=("OMP_NUM_THREADS",),
        )

    def name_specifications(self) -> None:
        self.world.manager.set_specifications({name: self.specification(name) for name in NAMES})

    async def new_gateway(self, substrate: FakeSubstrate) -> None:
        self.world = World(substrate=substrate, **LIMITS)
        self.world.manager.on_event.append(self.check_start)
        await self.world.manager.open()

    def check_start(self, event: PoolEvent) -> None:
        if event.kind != "started":
            return
        roster = self.world.manager._roster
        member = roster.find(event.member or "")
        assert member is not None
        if member.for_claim:
            return
        pool = roster.pool(event.kernelspec)
        ceiling = self.bounds[event.kernelspec][1]
        if len(pool.held()) > ceiling:
            self.violations.append(f"{len(pool.held())} members of {pool.name} held, ceiling {ceiling}")
        if sum(member.replaces_aged and member.state is MemberState.BOOTING for member in pool.members.values()) > 1:
            self.violations.append("two aged members are replaced at once")
        held = sum(roster.held_by_substrate().values())
        if held > LIMITS["total"]:
            self.violations.append(f"{held} members held, total {LIMITS['total']}")

    def pick(self, number: int, launchers: list[FakeLauncher]) -> FakeLauncher | None:
        return launchers[number % len(launchers)] if launchers else None

    # -- what happens ---------------------------------------------------------------------------------------------

    @initialize(capacity=st.integers(2, 6), lag=st.sampled_from([0.0, 1.0]), boot=st.sampled_from([0.1, 0.4, 3.0]))
    def begin(self, capacity: int, lag: float, boot: float) -> None:
        async def make() -> None:
            substrate = FakeSubstrate(capacity=capacity, boot_seconds=boot)
            substrate.lag_seconds = lag
            await self.new_gateway(substrate)

        self.run(make())
        self.name_specifications()

    @rule(seconds=moments)
    def time_passes(self, seconds: float) -> None:
        self.let(seconds)

    @rule(target=claims, name=st.sampled_from(NAMES), timeout=st.sampled_from([0.05, 0.6, 10.0]), fresh=st.booleans())
    @on_loop
    def claim(self, name: str, timeout: float, fresh: bool) -> int:
        env = {"OMP_NUM_THREADS": "2"} if fresh else {}
        coroutine = self.world.manager.claim(request(env=env), specification=self.specification(name), timeout=timeout)
        self.tasks.append(self.loop.create_task(coroutine))
        return len(self.tasks) - 1

    @rule(number=claims)
    @on_loop
    def cancel_claim(self, number: int) -> None:
        self.tasks[number].cancel()

    @rule(number=claims, grace=st.sampled_from([0.0, 5.0]))
    def shut_down(self, number: int, grace: float) -> None:
        task = self.tasks[number]
        if task.done() and not task.cancelled() and task.exception() is None:
            self.run(asyncio.wait([self.loop.create_task(task.result().shutdown(grace))], timeout=5))

    @rule(number=numbers)
    @on_loop
    def launcher_dies(self, number: int) -> None:
        launcher = self.pick(number, self.world.launchers)
        if launcher is not None:
            self.world.substrate.die(launcher.member.name)

    @rule(number=numbers)
    @on_loop
    def launcher_falls_silent(self, number: int) -> None:
        launcher = self.pick(number, [one for one in self.world.launchers if one.reachable])
        if launcher is not None:
            launcher.silence()

    @rule(number=numbers)
    @on_loop
    def launcher_speaks_again(self, number: int) -> None:
        launcher = self.pick(number, [one for one in self.world.launchers if not one.reachable])
        if launcher is not None:
            launcher.speak()

    @rule(number=numbers, reason=st.sampled_from(["working_directory_missing", "not_ready", "kernel_failed", None]))
    @on_loop
    def launcher_refuses(self, number: int, reason: str | None) -> None:
        launcher = self.pick(number, self.world.launchers)
        if launcher is not None:
            launcher.refusal = LauncherRefusedError("No.", reason=reason, status=422) if reason else None

    @rule(number=numbers, answers=st.booleans(), seconds=st.sampled_from([0.001, 0.3]))
    @on_loop
    def launcher_is_slow(self, number: int, answers: bool, seconds: float) -> None:
        launcher = self.pick(number, self.world.launchers)
        if launcher is not None:
            launcher.answers, launcher.promote_seconds = answers, seconds

    @rule(number=numbers, tell=st.booleans())
    @on_loop
    def thief_claims(self, number: int, tell: bool) -> None:
        launcher = self.pick(number, [one for one in self.world.launchers if one.state == "ready" and one.claim is None])
        if launcher is not None:
            self.stolen.add(launcher.member.name)
            launcher.claim, launcher.state = request(kernel_id="stolen"), "claimed"
            if tell:
                launcher.change()

    @rule(number=numbers)
    @on_loop
    def kernel_restarts_by_itself(self, number: int) -> None:
        launcher = self.pick(number, [one for one in self.world.launchers if one.state in {"ready", "claimed"}])
        if launcher is not None:
            launcher.change(generation=launcher.generation + 1)

    @rule(number=numbers)
    @on_loop
    def boot_fails(self, number: int) -> None:
        launcher = self.pick(number, [one for one in self.world.launchers if one.state == "starting"])
        if launcher is not None:
            launcher.fail_boot()

    @rule(fails=st.booleans(), boot=st.sampled_from([None, 0.1, 0.4, 3.0]), start=st.sampled_from([0.0, 0.1, 30.0]))
    @on_loop
    def starts_change(self, fails: bool, boot: float | None, start: float) -> None:
        self.world.substrate.start_error = LaunchError("The image is gone.", reason="image") if fails else None
        self.world.substrate.boot_seconds, self.world.substrate.start_seconds = boot, start

    @rule(errors=st.integers(0, 2), seconds=st.sampled_from([0.01, 1.0]))
    @on_loop
    def stops_change(self, errors: int, seconds: float) -> None:
        self.world.substrate.stop_errors, self.world.substrate.stop_seconds = errors, seconds

    @rule(fails=st.booleans())
    @on_loop
    def channels_change(self, fails: bool) -> None:
        self.world.prepare_error = OSError("no more sockets") if fails else None

    @rule(name=st.sampled_from(NAMES))
    @on_loop
    def specification_changes(self, name: str) -> None:
        self.variant[name] += 1
        self.name_specifications()

    @rule(name=st.sampled_from(NAMES), within=st.sampled_from([(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]))
    @on_loop
    def bounds_change(self, name: str, within: tuple[int, int]) -> None:
        self.bounds[name] = within
        self.name_specifications()

    @rule()
    def gateway_is_replaced(self) -> None:
        self.run(self.world.manager.close(shut_down_kernels=False))
        self.let(0.1)
        assert all(not launcher.holds for launcher in self.world.launchers)
        for task in self.tasks:
            assert task.done()
        self.run(self.new_gateway(self.world.substrate))
        self.name_specifications()

    # -- what always holds ----------------------------------------------------------------------------------------

    @invariant()
    def promises_hold(self) -> None:
        if hasattr(self, "world"):
            self.run(self.check_promises())

    async def check_promises(self) -> None:
        await asyncio.sleep(0.02)
        assert self.violations == []
        manager = self.world.manager
        assert manager.status()["error"] is None
        self.all_launchers.update(self.world.substrate.launchers)
        for launcher in self.all_launchers.values():
            assert len(launcher.claims_accepted) <= 1
        members = [kernel.member.name for kernel in manager.kernels.values()]
        assert len(members) == len(set(members))
        for pool in manager._roster.pools.values():
            for entry in pool.queue:
                assert entry.state is MemberState.READY
                assert not entry.reserved
                assert self.all_launchers[entry.name].claims_accepted == []
        for task in self.tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                assert isinstance(task.exception(), EgKnativeError), task.exception()
        assert self.world.substrate.most <= self.world.substrate.capacity

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.run(self.check_at_the_end())
        finally:
            pending = asyncio.all_tasks(self.loop)
            for task in pending:
                task.cancel()
            if pending:
                self.run(asyncio.wait(pending))
            self.loop.close()
        assert not [task.get_name() for task in pending if task not in self.tasks]

    def heal(self) -> None:
        substrate = self.world.substrate
        substrate.start_error, substrate.stop_errors, substrate.stop_seconds = None, 0, 0.01
        substrate.start_seconds, substrate.boot_seconds, substrate.lag_seconds = 0.1, 0.4, 0.0
        self.world.prepare_error = None
        for launcher in self.world.launchers:
            launcher.refusal, launcher.answers, launcher.promote_seconds = None, True, 0.001
            launcher.boot()
            if not launcher.reachable:
                launcher.speak()

    async def check_at_the_end(self) -> None:
        manager, substrate = self.world.manager, self.world.substrate
        self.heal()
        await asyncio.sleep(70)
        for task in self.tasks:
            assert task.done()
            assert task.cancelled() or task.exception() is None or isinstance(task.exception(), EgKnativeError)
        self.heal()
        for kernel in list(manager.kernels.values()):
            await kernel.shutdown(0)
        for name in self.stolen & set(substrate.launchers):
            await substrate.stop(member_name=name, grace_seconds=0)
        await asyncio.sleep(400)  # the longest back-off
        roster = manager._roster
        for name in NAMES:
            wanted = self.specification(name)
            ready = [member for member in roster.pool(name).members.values() if member.state is MemberState.READY]
            assert all(member.digest == wanted.digest for member in ready)
            assert len(ready) <= wanted.pool.ceiling  # type: ignore[operator]
            kernel = await manager.claim(request(), specification=wanted, timeout=30)
            assert kernel.alive
        known = {member.name for member in roster.members()}
        assert set(substrate.launchers) <= known
        await manager.close(shut_down_kernels=True)
        assert substrate.running == 0
        assert all(channels.closed for channels in self.world.channels)


def test_the_promises_of_the_pool() -> None:
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
        ),
    )
