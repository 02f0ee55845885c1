"""What can go wrong on one machine alone: gateways that are killed, zygotes that fail, records that lie."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from eg_knative.errors import ConfigurationError, LaunchError
from eg_knative.settings import LocalSettings
from eg_knative.specification import KernelSpecification, parse_specification
from eg_knative.substrates import local_log
from eg_knative.substrates.contract import Member, MemberGone
from eg_knative.substrates.local import LocalSubstrate
from eg_knative.substrates.local_nursery import Nursery
from eg_knative.wire.control import Beat, ClaimRequest, LauncherClient
from eg_knative.wire.hold import Hold
from tests.contract.kernels import evaluate

PATIENCE = 60.0


def specification(*, python: str = sys.executable, name: str = "python_test", **config: Any) -> KernelSpecification:
    return parse_specification(
        name=name,
        document={
            "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "metadata": {"process_proxy": {"config": config}},
        },
        resource_dir="",
        python=sys.executable,
    )


class Place:
    """One run directory, and every substrate opened on it."""

    def __init__(self, directory: Path) -> None:
        self.run = directory / "run"
        self.gone: list[MemberGone] = []
        self.substrates: list[LocalSubstrate] = []

    async def open(self, **settings: Any) -> LocalSubstrate:
        substrate = LocalSubstrate(settings=LocalSettings(run_directory=self.run, **settings))
        await substrate.open(gone=self.gone.append)
        self.substrates.append(substrate)
        return substrate

    async def close(self) -> None:
        for substrate in self.substrates:
            await substrate.close()
        last = await self.open()
        for member in await last.discover():
            await last.stop(member_name=member.name, grace_seconds=1)
        await last.close()
        assert [str(path) for name in ("members", "s") for path in (self.run / name).rglob("*")] == []


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    yield place
    await place.close()


def process_of(member: Member) -> psutil.Process:
    return psutil.Process(int(member.where["pid"]))


def nursery_of(member: Member) -> psutil.Process:
    process = process_of(member)
    while "eg-launcher-nursery" not in process.cmdline():
        process = process.parent()
        assert process is not None
    return process


async def beat_when(member: Member, state: str) -> Beat:
    client = LauncherClient(address=member.address, token=member.token)
    hold = Hold(client=client, interval=0.5, on_beat=lambda _: None, on_lost=lambda _: None)
    hold.start()
    try:
        return await hold.wait_beat(lambda beat: beat.state == state, timeout=PATIENCE)
    finally:
        await hold.close()


async def until_ready(member: Member) -> None:
    await beat_when(member, "ready")


async def until(condition: Any) -> None:
    for _ in range(int(PATIENCE / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")


async def test_members_of_one_kernelspec_are_forked_from_one_zygote(place: Place) -> None:
    substrate = await place.open()
    members = await asyncio.gather(
        *(substrate.start(specification=specification(), member_name=f"m{number}") for number in range(3))
    )
    other = await substrate.start(specification=specification(name="another"), member_name="o")
    assert {member.started_by for member in (*members, other)} == {"fork"}
    assert {member.notice for member in members} == {None}
    (shared,) = {nursery_of(member).pid for member in members}
    assert nursery_of(other).pid != shared
    changed = await substrate.start(specification=specification(auto_restart="never"), member_name="c")
    assert nursery_of(changed).pid != shared
    await until(lambda: not psutil.pid_exists(shared))
    for member in (*members, changed):
        await until_ready(member)


async def test_the_zygote_that_was_asked_longest_ago_makes_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eg_knative.substrates.local_nursery.MAXIMUM_ZYGOTES", 1)
    substrate = await place.open()
    first = await substrate.start(specification=specification(), member_name="first")
    old = nursery_of(first)
    second = await substrate.start(specification=specification(name="another"), member_name="second")
    await until(lambda: not old.is_running())
    assert (first.started_by, second.started_by) == ("fork", "fork")
    for member in (first, second):
        await until_ready(member)


async def test_a_zygote_that_was_killed_costs_warmth_for_a_while_and_nothing_else(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    substrate = await place.open()
    first = await substrate.start(specification=specification(), member_name="first")
    os.kill(nursery_of(first).pid, signal.SIGKILL)
    await until(lambda: "zygote ended" in caplog.text)
    second = await substrate.start(specification=specification(), member_name="second")
    assert second.started_by == "exec"
    assert second.notice is not None
    assert "The zygote ended: it was ended by signal 9" in second.notice
    await until_ready(first)
    await until_ready(second)
    await asyncio.sleep(1.1)
    third = await substrate.start(specification=specification(), member_name="third")
    assert third.started_by == "fork"
    assert place.gone == []


async def test_a_zygote_that_hangs_delays_one_start_and_is_ended(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eg_knative.substrates.local_launchers.FORK_TIMEOUT_SECONDS", 0.3)
    substrate = await place.open()
    first = await substrate.start(specification=specification(), member_name="first")
    hanging = nursery_of(first)
    hanging.suspend()
    second = await substrate.start(specification=specification(), member_name="second")
    assert second.started_by == "exec"
    assert second.notice is not None
    assert "did not answer within 0.3 s" in second.notice
    await until(lambda: not hanging.is_running())
    for member in (first, second):
        await until_ready(member)


async def test_a_kernel_that_cannot_be_forked_is_started_by_exec_with_the_reason(place: Place, tmp_path: Path) -> None:
    substrate = await place.open()
    refused = await substrate.start(specification=specification(zygote=False), member_name="refused")
    assert (refused.started_by, refused.notice) == ("exec", "Not forked from a zygote: The kernelspec says zygote: false.")
    await until_ready(refused)

    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    bare = await substrate.start(
        specification=specification(python=str(tmp_path / "bare/bin/python"), name="bare"), member_name="bare"
    )
    assert bare.started_by == "exec"
    assert bare.notice is not None
    assert "ipykernel" in bare.notice
    assert "ipykernel" in str((await beat_when(bare, "failed")).message)


async def test_failures_of_the_zygote_are_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    nursery = Nursery(log_path=tmp_path / "log")
    spec = specification(python=shutil.which("true") or "/bin/true")
    pauses = []
    for _ in range(3):
        with pytest.raises(Exception, match="No zygote"):
            await nursery.zygote(specification=spec, env={})
        nest = nursery._nests["python_test"]
        pauses.append(nest.not_before - asyncio.get_running_loop().time())
        with pytest.raises(Exception, match=r"tried again in \d+ s"):
            await nursery.zygote(specification=spec, env={})
        nest.not_before = 0
    await nursery.close()
    assert [round(pause) for pause in pauses] == [1, 2, 4]


@pytest.fixture
async def runtime(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Path]:
    """XDG_RUNTIME_DIR for this process and those that it starts, empty again at the end."""
    with tempfile.TemporaryDirectory(prefix="egk-test-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)
        assert list(Path(directory).iterdir()) == []


@pytest.mark.parametrize("length", ["short", "long"])
async def test_kernels_survive_a_gateway_that_is_killed(tmp_path: Path, runtime: Path, length: str) -> None:
    """Also where the run directory's path is too long for the sockets, which are then in another one."""
    place = Place(tmp_path / ("x" * 100) if length == "long" else tmp_path)
    try:
        await _kernels_survive(place)
        if length == "long":
            (elsewhere,) = runtime.iterdir()
            assert sorted(path.is_socket() for path in elsewhere.iterdir()) == [True, True], "the dead socket is gone"
    finally:
        await place.close()


async def _kernels_survive(place: Place) -> None:
    code = """
import asyncio, pathlib, sys
from eg_knative.settings import LocalSettings
from eg_knative.substrates.local import LocalSubstrate
from tests.integration.substrates.test_local_faults import specification, until_ready
async def main():
    substrate = LocalSubstrate(settings=LocalSettings(run_directory=pathlib.Path(sys.argv[1])))
    await substrate.open(gone=print)
    for zygote in (True, False):
        await until_ready(await substrate.start(specification=specification(zygote=zygote), member_name=f"m{int(zygote)}"))
    print("running", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    gateway = subprocess.Popen([sys.executable, "-c", code, str(place.run)], stdout=subprocess.PIPE, text=True)
    assert gateway.stdout is not None
    try:
        assert await asyncio.to_thread(gateway.stdout.readline) == "running\n"
        with pytest.raises(ConfigurationError, match=f"process {gateway.pid}"):
            await LocalSubstrate(settings=LocalSettings(run_directory=place.run)).open(gone=place.gone.append)
    finally:
        gateway.kill()
        gateway.wait()
        gateway.stdout.close()
    substrate = await place.open()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(substrate._run_directory.new_address().removeprefix("unix:"))
    found = await substrate.discover()
    assert {(member.name, member.started_by) for member in found} == {("m0", "exec"), ("m1", "fork")}
    for member in found:
        await until_ready(member)


async def test_a_launcher_that_was_never_written_down_is_ended(place: Place) -> None:
    first = await place.open()
    member = await first.start(specification=specification(), member_name="m")
    await first.close()
    path = Path(member.where["directory"]) / "member.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"launcher": None}))
    launcher = process_of(member)
    second = await place.open()
    assert await second.discover() == ()
    await until(lambda: not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE)


async def test_what_is_no_member_is_cleared_away(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    first = await place.open()
    member = await first.start(specification=specification(), member_name="m")
    await first.close()
    members = place.run / "members"
    (members / "empty").mkdir()
    (members / "spoilt").mkdir()
    (members / "spoilt" / "member.json").write_text("{")
    (place.run / "s" / "stray").touch()
    document = json.loads((members / "m" / "member.json").read_text())
    # The process ids of another boot of the machine, and of a process that had the number before: neither may be touched.
    for name, launcher in (
        ("rebooted", document["launcher"] | {"machine_boot": "another"}),
        ("reused", document["launcher"] | {"started_ticks": document["launcher"]["started_ticks"] - 1}),
    ):
        (members / name).mkdir()
        (members / name / "member.json").write_text(
            json.dumps(document | {"name": name, "launcher": launcher, "address": f"unix:{place.run}/s/{name}"})
        )
    second = await place.open()
    assert await second.discover() == (member,)
    assert [path.name for path in members.iterdir()] == ["m"]
    assert len(list((place.run / "s").iterdir())) == 1
    assert "no record of a member" in caplog.text
    await until_ready(member)


async def test_the_limit_of_processes_holds(place: Place) -> None:
    substrate = await place.open(maximum_processes=1)
    await substrate.start(specification=specification(), member_name="m")
    assert substrate.room().members == 0
    assert "maximum_processes is 1" in str(substrate.room().message)
    with pytest.raises(LaunchError, match="maximum_processes is 1") as refusal:
        await substrate.start(specification=specification(), member_name="n")
    assert refusal.value.reason == "quota"


async def test_an_unclaimed_launcher_without_a_gateway_ends_soon(place: Place) -> None:
    substrate = await place.open(unclaimed_timeout_seconds=0.5)
    member = await substrate.start(specification=specification(), member_name="m")
    await until(lambda: place.gone)
    assert place.gone[0].name == "m"
    assert "0.5 s" in place.gone[0].message
    await until(lambda: not Path(member.where["directory"]).exists())


async def test_logs_are_kept_short_while_the_kernel_writes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eg_knative.substrates.local._TRIM_SECONDS", 0.05)
    substrate = await place.open()
    member = await substrate.start(specification=specification(), member_name="m")
    log = Path(member.where["directory"]) / "launcher.log"
    with log.open("ab") as file:
        file.write(b"x" * (local_log.LIMIT_BYTES + 1))
    await until(lambda: log.stat().st_size < local_log.LIMIT_BYTES)


async def test_a_kernel_works_where_the_gateway_does(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the member's own directory, whose files go with it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    substrate = await place.open()
    for name in ("work", "home"):
        member = await substrate.start(specification=specification(), member_name=name)
        await until_ready(member)
        claim = ClaimRequest(
            claim_id="c", kernel_id="k", kernel_name="n", username="u", env={}, working_directory=None, attributes={}
        )
        promotion = await LauncherClient(address=member.address, token=member.token).promote(claim, timeout=PATIENCE)
        assert await evaluate(promotion.connection, "import os", "os.getcwd()") == str(tmp_path / name)
        shutil.rmtree(tmp_path / "work", ignore_errors=True)


async def test_a_warning_names_what_is_never_inherited(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    await place.open(inherited_environment=("SITE", "EG_AUTH_TOKEN"))
    assert "EG_AUTH_TOKEN" in caplog.text
    assert "SITE" not in caplog.text
