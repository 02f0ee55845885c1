"""What every substrate promises, said once. See eg_knative/substrates/contract.py and docs/launcher-protocol.md."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from eg_knative.errors import AlreadyClaimedError, LauncherError, LauncherRefusedError, LaunchError, LauncherUnreachableError
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Member, Substrate
from eg_knative.wire.control import Beat, ClaimRequest, LauncherClient, Promotion
from eg_knative.wire.hold import Hold
from tests.contract.conftest import settled
from tests.contract.houses import House
from tests.contract.kernels import evaluate, shell

MakeSpecification = Callable[..., KernelSpecification]
PATIENCE = 60.0


def client_of(member: Member) -> LauncherClient:
    return LauncherClient(address=member.address, token=member.token)


def a_claim(**changes: object) -> ClaimRequest:
    fields: dict[str, object] = {
        "claim_id": uuid.uuid4().hex,
        "kernel_id": str(uuid.uuid4()),
        "kernel_name": "python_test",
        "username": "ada",
        "env": {"KERNEL_USERNAME": "ada", "GREETING": "hello"},
        "working_directory": None,
        "attributes": {"origin": ["contract", 1]},
    }
    return ClaimRequest(**(fields | changes))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def held(member: Member) -> AsyncIterator[Hold]:
    hold = Hold(client=client_of(member), interval=0.5, on_beat=lambda _: None, on_lost=lambda _: None)
    hold.start()
    try:
        yield hold
    finally:
        await hold.close()


async def ready(member: Member) -> Beat:
    async with held(member) as hold:
        beat = await hold.wait_beat(lambda b: b.state in ("ready", "failed"), timeout=PATIENCE)
    assert beat.state == "ready", beat
    return beat


async def claimed(member: Member, **changes: object) -> Promotion:
    await ready(member)
    return await client_of(member).promote(a_claim(**changes), timeout=PATIENCE)


async def test_a_started_member_says_who_and_where_it_is(substrate: Substrate, specification: MakeSpecification) -> None:
    spec = specification()
    before = time.time()
    member = await substrate.start(specification=spec, member_name="first")
    assert (member.name, member.substrate, member.kernelspec) == ("first", substrate.name, "python_test")
    assert member.specification_digest == spec.digest
    assert before <= member.created_at <= time.time()
    assert member.started_by
    assert member.where
    assert member.token not in repr(member)
    beat = await ready(member)
    assert (beat.name, beat.kernel_state, beat.kernel_generation, beat.kernel_id) == ("first", "idle", 1, None)
    answer = await client_of(member).connection()
    assert answer.claim is None
    assert answer.connection.key not in repr(answer)


async def test_a_promotion_gives_a_running_kernel_its_identity(
    substrate: Substrate, specification: MakeSpecification, tmp_path: Path
) -> None:
    member = await substrate.start(specification=specification(env={"FROM_SPEC": "yes"}), member_name="m")
    await ready(member)
    pool_key = (await client_of(member).connection()).connection.key
    claim = a_claim(working_directory=str(tmp_path))
    promotion = await client_of(member).promote(claim, timeout=PATIENCE)
    assert (promotion.claim_id, promotion.started, promotion.notice) == (claim.claim_id, "running", None)
    assert promotion.connection.key != pool_key
    seen = await evaluate(
        promotion.connection,
        "import os",
        "(os.environ['GREETING'], os.environ['FROM_SPEC'], os.getcwd())",
    )
    assert seen == ("hello", "yes", str(tmp_path))
    answer = await client_of(member).connection()
    assert answer.claim is not None
    assert answer.claim.kernel_id == claim.kernel_id
    assert answer.claim.attributes == claim.attributes
    assert answer.connection == promotion.connection


async def test_one_claim_owns_a_member(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    await ready(member)
    claims = [a_claim() for _ in range(8)]
    answers = await asyncio.gather(
        *(client_of(member).promote(claim, timeout=PATIENCE) for claim in claims), return_exceptions=True
    )
    won = [answer for answer in answers if isinstance(answer, Promotion)]
    assert len(won) == 1
    assert all(isinstance(answer, AlreadyClaimedError) for answer in answers if answer is not won[0])
    winner = next(claim for claim in claims if claim.claim_id == won[0].claim_id)
    assert await client_of(member).promote(winner, timeout=PATIENCE) == won[0]
    with pytest.raises(AlreadyClaimedError) as refusal:
        await client_of(member).promote(a_claim(), timeout=PATIENCE)
    assert winner.kernel_id not in str(refusal.value)
    assert "ada" not in str(refusal.value)


async def test_a_wrong_token_gets_nothing(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    thief = LauncherClient(address=member.address, token="0" * 64)
    for call in (thief.health(), thief.connection(), thief.promote(a_claim(), timeout=5), thief.shutdown(grace_seconds=0)):
        with pytest.raises(LauncherRefusedError) as refusal:
            await call
        assert (refusal.value.reason, refusal.value.status) == ("unauthorized", 401)
    assert (await ready(member)).claim_id is None


async def test_a_restart_in_place_keeps_ports_and_key(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    with pytest.raises(LauncherRefusedError) as refusal:
        await client_of(member).restart(timeout=PATIENCE)
    assert refusal.value.reason == "not_claimed"
    promotion = await claimed(member)
    await evaluate(promotion.connection, "kept = 1")
    restarted = await client_of(member).restart(timeout=PATIENCE)
    assert restarted.connection == promotion.connection
    assert restarted.kernel_generation == promotion.kernel_generation + 1
    assert await evaluate(restarted.connection, "import os", "('kept' in globals(), os.environ['GREETING'])") == (False, "hello")


async def test_an_interrupt_ends_a_cell_and_nothing_else(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    async with shell(promotion.connection) as kernel, held(member) as hold:
        await kernel.send("kept = 1\nwhile True: pass")
        await hold.wait_beat(lambda beat: beat.kernel_state == "busy", timeout=PATIENCE)
        await client_of(member).interrupt()
        reply = await kernel.reply()
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert await evaluate(promotion.connection, "", "kept") == 1


@pytest.mark.parametrize(
    ("code", "reason", "number"),
    [("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signalled", 9), ("import os; os._exit(3)", "exited", 3)],
)
async def test_a_crash_is_told_with_its_reason_and_restarted(
    substrate: Substrate, specification: MakeSpecification, code: str, reason: str, number: int
) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    async with shell(promotion.connection) as kernel, held(member) as hold:
        await kernel.send(code)
        beat = await hold.wait_beat(lambda b: b.kernel_generation == 2 and b.kernel_state == "idle", timeout=PATIENCE)
    assert beat.state == "claimed"
    assert beat.exit is not None
    assert (beat.exit.reason, beat.exit.generation, beat.exit.restarted) == (reason, 1, True)
    assert number in (beat.exit.code, beat.exit.signal)
    assert beat.exit.message
    assert await evaluate(promotion.connection, "", "1 + 1") == 2


async def test_a_kernel_that_may_not_restart_stays_dead_and_its_launcher_lives(
    substrate: Substrate, specification: MakeSpecification
) -> None:
    member = await substrate.start(specification=specification(auto_restart="never"), member_name="m")
    promotion = await claimed(member)
    async with shell(promotion.connection) as kernel, held(member) as hold:
        await kernel.send("import os; os._exit(3)")
        beat = await hold.wait_beat(lambda b: b.kernel_state == "dead", timeout=PATIENCE)
    assert beat.exit is not None
    assert not beat.exit.restarted
    assert (await client_of(member).health()).name == "m"


async def test_usage_is_that_of_the_kernel(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    before = await client_of(member).usage()
    await evaluate(promotion.connection, "block = bytearray(b'x') * 64_000_000")
    after = await client_of(member).usage()
    assert after.resident_bytes - before.resident_bytes > 50_000_000
    assert after.cpu_seconds >= before.cpu_seconds
    assert after.processes >= 1
    assert after.threads >= 1


async def test_stop_leaves_nothing(house: House, substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    await evaluate(
        promotion.connection,
        "import subprocess\nsubprocess.Popen(['sleep', '1000'])\nsubprocess.Popen(['sleep', '1001'], start_new_session=True)",
    )
    assert any("sleep 1000" in line for line in house.traces()["processes"])
    await asyncio.gather(*(substrate.stop(member_name="m", grace_seconds=5) for _ in range(3)))
    assert not any((await settled(house)).values())
    await substrate.stop(member_name="m", grace_seconds=5)
    await substrate.stop(member_name="never-was", grace_seconds=5)
    with pytest.raises(LauncherUnreachableError):
        await client_of(member).health()
    assert house.gone == []


async def test_a_kernel_that_does_not_listen_is_stopped_all_the_same(
    house: House, substrate: Substrate, specification: MakeSpecification
) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    async with shell(promotion.connection) as kernel, held(member) as hold:
        await kernel.send("import signal\nfor s in (2, 15): signal.signal(s, signal.SIG_IGN)\nwhile True: pass")
        await hold.wait_beat(lambda beat: beat.kernel_state == "busy", timeout=PATIENCE)
    started = time.monotonic()
    await substrate.stop(member_name="m", grace_seconds=0.5)
    assert time.monotonic() - started < 10
    assert not any((await settled(house)).values())


async def test_members_outlive_their_gateway_and_are_adopted(house: House, specification: MakeSpecification) -> None:
    spec = specification()
    first = await house.open()
    in_use = await first.start(specification=spec, member_name="in-use")
    promotion = await claimed(in_use)
    await evaluate(promotion.connection, "kept = 41")
    waiting = await first.start(specification=spec, member_name="waiting")
    await ready(waiting)
    await first.close()
    second = await house.open()
    found = {member.name: member for member in await second.discover()}
    assert found == {"in-use": in_use, "waiting": waiting}
    assert await second.discover() == ()
    assert await evaluate(promotion.connection, "kept += 1", "kept") == 42
    assert (await client_of(found["in-use"]).connection()).connection == promotion.connection
    assert (await claimed(found["waiting"])).started == "running"
    await second.stop(member_name="in-use", grace_seconds=2)
    await second.stop(member_name="waiting", grace_seconds=2)
    assert not any((await settled(house)).values())


async def test_the_dead_are_cleared_away_when_the_next_gateway_comes(house: House, specification: MakeSpecification) -> None:
    first = await house.open()
    member = await first.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    await evaluate(promotion.connection, "import subprocess\nsubprocess.Popen(['sleep', '1000'])")
    await first.close()
    house.kill_launcher(member)
    second = await house.open()
    assert await second.discover() == ()
    assert not any((await settled(house)).values())


async def test_the_end_of_a_launcher_is_told_once_and_cleared_away(
    house: House, substrate: Substrate, specification: MakeSpecification
) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    promotion = await claimed(member)
    await evaluate(promotion.connection, "import subprocess\nsubprocess.Popen(['sleep', '1000'])")
    started = time.monotonic()
    house.kill_launcher(member)
    while not house.gone and time.monotonic() - started < PATIENCE:
        await asyncio.sleep(0.002)
    assert [gone.name for gone in house.gone] == ["m"]
    assert house.gone[0].reason
    assert "m" in house.gone[0].message
    assert not any((await settled(house)).values())
    await substrate.stop(member_name="m", grace_seconds=1)
    await asyncio.sleep(0.1)
    assert len(house.gone) == 1
    again = await substrate.start(specification=specification(), member_name="m")
    await ready(again)


async def test_an_adopted_member_is_watched_too(house: House, specification: MakeSpecification) -> None:
    first = await house.open()
    member = await first.start(specification=specification(), member_name="m")
    await ready(member)
    await first.close()
    second = await house.open()
    (adopted,) = await second.discover()
    house.kill_launcher(adopted)
    for _ in range(500):
        if house.gone:
            break
        await asyncio.sleep(0.01)
    assert [gone.name for gone in house.gone] == ["m"]


async def test_a_program_that_does_not_exist_is_a_doomed_start(
    house: House, substrate: Substrate, specification: MakeSpecification, tmp_path: Path
) -> None:
    script = tmp_path / "kernel"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    plain = tmp_path / "not-executable"
    plain.write_text("")
    for program in ("/no/such/program", "no-such-program", str(script), str(plain), str(tmp_path)):
        started = time.monotonic()
        with pytest.raises(LaunchError) as failure:
            await substrate.start(specification=specification(argv=[program, "{connection_file}"]), member_name="m")
        assert failure.value.reason == "not_found"
        assert program in failure.value.message
        assert time.monotonic() - started < 2
        assert not any(house.traces().values())


async def test_a_launcher_that_refuses_its_configuration_is_a_doomed_start(
    house: House, substrate: Substrate, specification: MakeSpecification
) -> None:
    with pytest.raises(LaunchError) as failure:
        await substrate.start(specification=specification(env={"A=B": "secret-value"}), member_name="m")
    assert failure.value.reason == "launcher_failed"
    assert "kernel.env" in failure.value.message
    assert "secret-value" not in failure.value.message
    assert not any((await settled(house)).values())


async def test_a_kernel_that_exits_at_once_is_told_by_its_launcher(
    substrate: Substrate, specification: MakeSpecification
) -> None:
    argv = [sys.executable, "-c", "print('no licence today'); raise SystemExit(7)", "{connection_file}"]
    member = await substrate.start(specification=specification(argv=argv, start="boot"), member_name="m")
    async with held(member) as hold:
        beat = await hold.wait_beat(lambda b: b.state == "failed", timeout=PATIENCE)
    assert beat.exit is not None
    assert (beat.exit.reason, beat.exit.code) == ("exited", 7)
    assert "no licence today" in beat.exit.message


@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("zygote", [True, False])
async def test_a_cancelled_start_leaves_nothing(
    house: House, substrate: Substrate, specification: MakeSpecification, delay: float, zygote: bool
) -> None:
    start = asyncio.create_task(substrate.start(specification=specification(zygote=zygote), member_name="m"))
    await asyncio.sleep(delay)
    start.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await start
        await substrate.stop(member_name="m", grace_seconds=0)  # it was quicker than we
    assert not any((await settled(house)).values())
    assert house.gone == []
    await substrate.start(specification=specification(zygote=zygote), member_name="m")


@pytest.mark.parametrize("delay", [0, 0.01, 0.1])
async def test_a_stop_during_the_start_ends_both(
    house: House, substrate: Substrate, specification: MakeSpecification, delay: float
) -> None:
    start = asyncio.create_task(substrate.start(specification=specification(), member_name="m"))
    await asyncio.sleep(delay)
    await substrate.stop(member_name="m", grace_seconds=1)
    result = (await asyncio.gather(start, return_exceptions=True))[0]
    assert isinstance(result, (LaunchError, Member))
    assert not any((await settled(house)).values())


async def test_closing_during_a_start_ends_it(house: House, specification: MakeSpecification) -> None:
    substrate = await house.open()
    start = asyncio.create_task(substrate.start(specification=specification(), member_name="m"))
    await asyncio.sleep(0.05)
    await substrate.close()
    with pytest.raises(LaunchError):
        await start
    assert not any((await settled(house)).values())


async def test_a_name_is_used_once(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    for name in ("m", "", "../m", "M", "-m", "a" * 64, "m\0", "m/n"):
        with pytest.raises(LaunchError):
            await substrate.start(specification=specification(), member_name=name)
    await ready(member)


async def test_room_shrinks_with_each_member(substrate: Substrate, specification: MakeSpecification) -> None:
    before = substrate.room()
    assert before.members > 1
    assert before.message is None
    await substrate.start(specification=specification(), member_name="m")
    assert substrate.room().members < before.members


async def test_many_at_once(house: House, substrate: Substrate, specification: MakeSpecification) -> None:
    names = [f"m{number}" for number in range(8)]
    members = await asyncio.gather(*(substrate.start(specification=specification(), member_name=name) for name in names))
    assert [member.name for member in members] == names
    assert len({member.address for member in members}) == len({member.token for member in members}) == len(names)
    promotions = await asyncio.gather(*(claimed(member) for member in members))
    assert len({promotion.connection.key for promotion in promotions}) == len(names)
    assert len({promotion.connection.shell_port for promotion in promotions}) == len(names)
    pids = await asyncio.gather(
        *(evaluate(p.connection, "import os, random", "(os.getpid(), random.random())") for p in promotions)
    )
    assert len(set(pids)) == len(names)
    await asyncio.gather(*(substrate.stop(member_name=name, grace_seconds=2) for name in names))
    assert not any((await settled(house)).values())


async def test_a_closed_substrate_says_so(house: House, specification: MakeSpecification) -> None:
    substrate = await house.open()
    await substrate.close()
    await substrate.close()
    with pytest.raises(LaunchError) as failure:
        await substrate.start(specification=specification(), member_name="m")
    assert failure.value.reason == "closed"


async def test_the_gateways_own_environment_stays_its_own(
    house: House, specification: MakeSpecification, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EG_AUTH_TOKEN", "the-gateways-token")
    monkeypatch.setenv("DATABASE_PASSWORD", "the-gateways-password")
    monkeypatch.setenv("UNRELATED", "the-gateways-own")
    substrate = await house.open()
    for zygote in (True, False):
        name = f"m{int(zygote)}"
        promotion = await claimed(await substrate.start(specification=specification(zygote=zygote), member_name=name))
        code = "import os, glob\nseen = set()"
        code += "\npid = str(os.getpid())\nfor _ in range(2):\n"
        code += "  seen.add(open(f'/proc/{pid}/environ').read())\n"
        code += "  pid = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[1]\n"
        code += "seen.add(repr(dict(os.environ)))"
        assert await evaluate(promotion.connection, code, "any('the-gateways' in each for each in seen)") is False


def test_this_process_is_not_a_gateway() -> None:
    """The suite must not inherit what it tests for."""
    assert "EG_AUTH_TOKEN" not in os.environ


async def test_junk_on_the_control_port_harms_nothing(substrate: Substrate, specification: MakeSpecification) -> None:
    member = await substrate.start(specification=specification(), member_name="m")
    from eg_knative.wire.http import Address

    for junk in (
        b"",
        b"\0" * 10_000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /v1/promote HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    ):
        _, writer = await Address.parse(member.address).connect()
        writer.write(junk)
        writer.close()
    with contextlib.suppress(LauncherError):
        await LauncherClient(address=member.address, token="x" * 100_000).health()
    assert (await ready(member)).state == "ready"
