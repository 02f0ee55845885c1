"""The pool over the real local substrate, real launchers and real ipykernel: what the fakes of the unit tests stand for."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from eg_knative.errors import BadRequestError, DuplicateKernelError, LaunchError, LaunchTimeoutError
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.events import KernelEvent
from eg_knative.runtime import Runtime
from eg_knative.settings import LocalSettings, PoolSettings, Settings
from eg_knative.specification import KernelSpecification
from eg_knative.wire.control import ClaimRequest

ARGV = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
START = 60.0
"""Seconds for a real start on a machine that is busy with others."""


def request(kernel_id: str | None = None, **changes: Any) -> ClaimRequest:
    plain = ClaimRequest(
        claim_id=uuid.uuid4().hex,
        kernel_id=kernel_id or str(uuid.uuid4()),
        kernel_name="python",
        username="alice",
        env={"KERNEL_USERNAME": "alice"},
        working_directory=None,
        attributes={"path": "a.ipynb"},
    )
    return dataclasses.replace(plain, **changes)


def specification(runtime: Runtime, *, argv: list[str] | None = None, env: dict[str, str] | None = None, **pool: Any) -> Any:
    document = {
        "argv": argv or ARGV,
        "display_name": "Python",
        "language": "python",
        "env": env or {},
        "metadata": {"process_proxy": {"config": {"substrate": "local", "pool": pool}}},
    }
    return runtime.specification_for("python", document, "/nowhere")


MakeRuntime = Callable[..., Runtime]


@pytest.fixture
async def make_runtime(tmp_path: Path) -> AsyncIterator[MakeRuntime]:
    """Runtimes on one run directory; at the end all are closed, and no process of theirs is left."""
    runtimes: list[Runtime] = []
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def make(**pool: Any) -> Runtime:
        runtimes.append(
            Runtime(
                Settings(
                    local=LocalSettings(run_directory=tmp_path / "run"),
                    pool=PoolSettings(**pool),
                    beat_interval_seconds=0.5,
                )
            )
        )
        return runtimes[-1]

    yield make
    for runtime in runtimes:
        await runtime.close(shut_down_kernels=True)
    left = await _processes_but(before)
    assert left == []
    members = tmp_path / "run" / "members"
    assert not members.exists() or list(members.iterdir()) == []


async def _processes_but(before: set[int]) -> list[str]:
    for _ in range(50):
        left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
        if not left:
            return []
        await asyncio.sleep(0.1)
    return [str(process) for process in left]


async def ready(runtime: Runtime, count: int) -> None:
    async def wait() -> None:
        while runtime.pool.status()["totals"]["ready"] != count:
            await asyncio.sleep(0.02)

    await asyncio.wait_for(wait(), START)


async def warm(runtime: Runtime, spec: KernelSpecification, count: int) -> None:
    await runtime.open()
    runtime.pool.set_specifications({"python": spec})
    await ready(runtime, count)


async def heard(events: list[KernelEvent], kind: str) -> KernelEvent:
    async def wait() -> KernelEvent:
        while True:
            for event in events:
                if event.kind == kind:
                    return event
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(wait(), START)


async def test_a_hit_takes_the_running_process_and_the_pool_fills_up_again(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=2)
    spec = specification(runtime)
    await warm(runtime, spec, 2)
    kernel = await runtime.pool.claim(request("k-1"), specification=spec, timeout=START)
    assert kernel.launch.hit
    assert kernel.launch.started == "running"
    assert kernel.launch.phases["promote"] < 1.0
    assert kernel.alive
    usage = await kernel.usage()
    assert usage.resident_bytes > 10_000_000
    channels = kernel.take_channels()
    assert channels is not None
    assert channels.kernel_info is not None
    channels.close()
    await ready(runtime, 2)
    assert runtime.pool.status()["pools"]["python"]["hits"] == 1


async def test_a_miss_is_a_normal_launch(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime, floor=0, ceiling=1)
    await warm(runtime, spec, 0)
    kernel = await runtime.pool.claim(request(), specification=spec, timeout=START)
    assert (kernel.launch.hit, kernel.launch.miss_reason) == (False, "empty")
    assert kernel.alive
    assert kernel.channels is not None


async def test_an_import_time_variable_gets_a_fresh_process(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime, import_time_variables=["OMP_NUM_THREADS"])
    await warm(runtime, spec, 1)
    kernel = await runtime.pool.claim(
        request(env={"KERNEL_USERNAME": "alice", "OMP_NUM_THREADS": "1"}), specification=spec, timeout=START
    )
    assert kernel.launch.started == "fresh"
    assert kernel.launch.miss_reason == "import-time-variable"
    assert kernel.channels is not None


async def test_twenty_claims_at_once(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=4)
    spec = specification(runtime)
    await warm(runtime, spec, 4)
    kernels = await asyncio.gather(
        *(runtime.pool.claim(request(), specification=spec, timeout=100) for _ in range(20)), return_exceptions=True
    )
    assert [kernel for kernel in kernels if not isinstance(kernel, ClaimedKernel)] == []
    assert len({kernel.member.name for kernel in kernels if isinstance(kernel, ClaimedKernel)}) == 20
    await asyncio.gather(*(kernel.shutdown(0.2) for kernel in kernels if isinstance(kernel, ClaimedKernel)))
    assert dict(runtime.pool.kernels) == {}


async def test_a_bad_working_directory_is_refused_and_the_member_stays(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime)
    await warm(runtime, spec, 1)
    (before,) = runtime.pool.status()["pools"]["python"]["members"]
    with pytest.raises(BadRequestError) as caught:
        await runtime.pool.claim(request(working_directory="/no/such/place"), specification=spec, timeout=START)
    assert caught.value.reason == "working_directory_missing"
    (after,) = runtime.pool.status()["pools"]["python"]["members"]
    assert (after["name"], after["state"]) == (before["name"], "ready")
    kernel = await runtime.pool.claim(request("k"), specification=spec, timeout=START)
    assert kernel.launch.hit
    with pytest.raises(DuplicateKernelError):
        await runtime.pool.claim(request("k"), specification=spec, timeout=START)


async def test_a_changed_kernelspec_replaces_its_ready_members(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec, newer = specification(runtime), specification(runtime, env={"NEW": "1"})
    await warm(runtime, spec, 1)
    runtime.pool.set_specifications({"python": newer})
    kernel = await runtime.pool.claim(request(), specification=newer, timeout=START)
    assert kernel.launch.miss_reason == "spec-changed"
    assert kernel.member.specification_digest == newer.digest


async def test_an_old_member_is_replaced(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    await warm(runtime, specification(runtime, maximum_age_seconds=1.0), 1)
    retired: list[str | None] = []
    runtime.pool.on_event.append(lambda event: retired.append(event.reason) if event.kind == "retired" else None)
    for _ in range(300):
        await asyncio.sleep(0.1)
        if "aged" in retired:
            break
    assert retired[:1] == ["aged"]


async def test_a_crash_is_told_and_the_kernel_comes_back(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime)
    await warm(runtime, spec, 1)
    kernel = await runtime.pool.claim(request(), specification=spec, timeout=START)
    events: list[KernelEvent] = []
    kernel.add_listener(events.append)
    await kernel.signal(9)
    died = await heard(events, "died")
    assert died.exit.signal == 9
    await heard(events, "restarted")
    assert kernel.alive
    assert kernel.kernel_generation == 2


async def test_a_restart_keeps_ports_and_key(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime)
    await warm(runtime, spec, 1)
    kernel = await runtime.pool.claim(request(), specification=spec, timeout=START)
    before = kernel.connection
    assert await kernel.restart(START) == before
    await kernel.interrupt()


async def test_a_launcher_that_is_killed_takes_its_kernel_and_is_replaced(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=1)
    spec = specification(runtime)
    await warm(runtime, spec, 1)
    kernel = await runtime.pool.claim(request("k"), specification=spec, timeout=START)
    events: list[KernelEvent] = []
    kernel.add_listener(events.append)
    os.kill(int(kernel.member.where["pid"]), 9)
    await heard(events, "gone")
    assert not kernel.alive
    assert "k" not in runtime.pool.kernels
    await ready(runtime, 1)


async def test_the_next_gateway_adopts_kernels_and_ready_members(make_runtime: MakeRuntime) -> None:
    first = make_runtime(size=2)
    spec = specification(first)
    await warm(first, spec, 2)
    kernel = await first.pool.claim(request("k"), specification=spec, timeout=START)
    await ready(first, 2)
    key = kernel.connection.key
    await first.close(shut_down_kernels=False)

    second = make_runtime(size=2)
    await second.open()
    adopted = second.pool.kernels["k"]
    assert adopted.launch.adopted
    assert adopted.connection.key == key
    assert adopted.claim.attributes == {"path": "a.ipynb"}
    assert adopted.member.name == kernel.member.name
    second.pool.set_specifications({"python": spec})
    assert (await second.pool.claim(request(), specification=spec, timeout=START)).launch.hit
    await adopted.shutdown(1)


@pytest.mark.parametrize(
    "argv",
    [
        ["/no/such/python", "-f", "{connection_file}"],
        ["python", "-c", "raise SystemExit(3)", "{connection_file}"],
    ],
    ids=["a program that does not exist", "a kernel that exits at once"],
)
async def test_a_doomed_launch_is_reported_at_once_and_leaves_nothing(make_runtime: MakeRuntime, argv: list[str]) -> None:
    runtime = make_runtime(size=0)
    spec = specification(runtime, argv=argv)
    await warm(runtime, spec, 0)
    began = asyncio.get_running_loop().time()
    with pytest.raises(LaunchError) as caught:
        await runtime.pool.claim(request(), specification=spec, timeout=START)
    assert not isinstance(caught.value, LaunchTimeoutError)
    assert asyncio.get_running_loop().time() - began < START / 2
    assert runtime.pool.status()["pools"]["python"]["members"] == []


async def test_a_kernel_that_never_binds_times_out_and_leaves_nothing(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=0)
    spec = specification(runtime, argv=["python", "-c", "import time; time.sleep(1000)", "{connection_file}"])
    await warm(runtime, spec, 0)
    with pytest.raises(LaunchError) as caught:
        await runtime.pool.claim(request(), specification=spec, timeout=3)
    assert caught.value.message
    assert runtime.pool.status()["pools"]["python"]["members"] == []


async def test_a_cancelled_launch_leaves_nothing(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(size=0)
    spec = specification(runtime)
    await warm(runtime, spec, 0)
    cancelled = 0
    for seconds in (0.0, 0.02, 0.1, 0.3):
        claiming = asyncio.ensure_future(runtime.pool.claim(request(), specification=spec, timeout=START))
        await asyncio.sleep(seconds)
        claiming.cancel()
        await asyncio.wait({claiming})
        if claiming.cancelled():
            cancelled += 1
        else:  # A machine with nothing else to do launches in less time.
            await claiming.result().shutdown(grace_seconds=1)
    assert cancelled >= 2
    for _ in range(100):
        await asyncio.sleep(0.1)
        if not runtime.pool.status()["pools"]["python"]["members"]:
            break
    assert runtime.pool.status()["pools"]["python"]["members"] == []


async def test_the_runtime_of_a_loop_is_one_until_it_is_closed(make_runtime: MakeRuntime, tmp_path: Path) -> None:
    settings = Settings(local=LocalSettings(run_directory=tmp_path / "run"), pool=PoolSettings(size=0))
    assert Runtime.current() is None
    runtime = Runtime.get_or_create(settings)
    assert Runtime.get_or_create(settings) is runtime is Runtime.current()
    await asyncio.gather(runtime.open(), runtime.open())
    await asyncio.gather(runtime.close(shut_down_kernels=True), runtime.close(shut_down_kernels=True))
    assert Runtime.current() is None
