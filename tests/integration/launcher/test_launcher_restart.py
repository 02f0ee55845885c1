"""Restarts, by request and by themselves: what stays, what goes, and how the end of a kernel is told."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.launcher.launching import Client, Member, Members


async def _spare_is_there(member: Member) -> None:
    """Wait until the launcher has three children: zygote, kernel, spare."""
    async with asyncio.timeout(10):
        while len(psutil.Process(member.process.pid).children()) < 3:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)  # and until it is initialised


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def _die(client: Client, code: str) -> None:
    await client.send("execute_request", {"code": code, "silent": False})


async def test_ten_in_a_row(members: Members, any_python: str) -> None:
    member = await members.ready(any_python)
    promoted = await member.promote(env={"MINE": "kept"}, working_directory=str(members.directory))
    started = []
    for generation in range(2, 12):
        client = await member.client()
        await client.execute("variable = 1")
        client.close()
        member.note_processes()
        answer = await member.ok("POST", "/v1/restart", {})
        started.append(answer["started_by"])
        assert answer["kernel_generation"] == generation
        assert answer["connection"] == promoted["connection"]
        client = await member.client()
        look = "['variable' in globals(), os.environ['MINE'], os.getcwd(), get_ipython().kernel.session.username]"
        assert await client.json(look, "import os") == [False, "kept", str(members.directory), "ada"]
        client.close()
    assert set(started) == {"spare"}
    beat = await member.beat()
    assert (beat["restarts"], beat["kernel_generation"], beat["notice"], beat["exit"]) == (10, 11, None, None)


async def test_a_busy_kernel_is_restarted_without_asking_it(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    await _spare_is_there(member)
    client = await member.client()
    await client.send("execute_request", {"code": "while True: pass", "silent": False})
    await member.until(lambda beat: beat["kernel_state"] == "busy")
    answer = await member.ok("POST", "/v1/restart", {})
    assert answer["started_by"] == "spare"
    assert (await member.beat())["kernel_state"] == "idle"
    assert await (await member.client()).execute("1 + 1") == "2"


async def test_a_short_exit_handler_runs(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    client = await member.client()
    farewell = members.directory / "farewell"
    await client.execute(f"import atexit; atexit.register(lambda: open({str(farewell)!r}, 'w').write('bye'))")
    await member.ok("POST", "/v1/restart", {})
    assert farewell.read_text() == "bye"


async def test_what_a_kernel_does_at_exit_it_may_finish_while_its_successor_serves(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    await _spare_is_there(member)
    client = await member.client()
    farewell, buffered = members.directory / "farewell", members.directory / "buffered"
    await client.execute(
        f"import atexit, time; file = open({str(buffered)!r}, 'w'); file.write('not flushed')\n"
        f"atexit.register(lambda: (time.sleep(1), open({str(farewell)!r}, 'w').write('bye')))"
    )
    answer = await member.ok("POST", "/v1/restart", {})
    assert answer["phases"]["total"] < 1
    assert not farewell.exists()
    assert await (await member.client()).execute("1 + 1") == "2"
    await _eventually(lambda: farewell.exists() and farewell.read_text() == "bye" and buffered.read_text() == "not flushed")


async def test_a_kernel_that_lingers_at_exit_is_ended_with_its_launcher(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    client = await member.client()
    pid = int(await client.execute("import atexit, os, time; atexit.register(time.sleep, 60); os.getpid()"))
    await member.ok("POST", "/v1/restart", {})
    assert psutil.pid_exists(pid), member.log.read_text()[-2000:]
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 1})
    await _eventually(lambda: not psutil.pid_exists(pid))


async def test_restarts_asked_for_at_once_are_one(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    answers = await asyncio.gather(*(member.ok("POST", "/v1/restart", {}) for _ in range(5)))
    assert {answer["kernel_generation"] for answer in answers} == {2}


async def test_not_before_the_claim(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    status, answer = await member.call("POST", "/v1/restart", {})
    assert (status, answer["reason"]) == (409, "not_claimed")


@pytest.mark.parametrize(
    ("code", "reason", "number", "words"),
    [
        ("import os; os.write(2, b'the last words'); os._exit(3)", "exited", 3, "exit code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signalled", 11, "SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signalled", 9, "SIGKILL"),
    ],
)
async def test_a_crash_is_explained_and_mended(
    members: Members, ipykernel_6: str, code: str, reason: str, number: int, words: str
) -> None:
    member = await members.ready(ipykernel_6)
    connection = (await member.promote(env={"MINE": "kept"}))["connection"]
    await _spare_is_there(member)
    client = await member.client()
    await _die(client, code)
    beat = await member.until(lambda beat: beat["kernel_generation"] == 2 and beat["kernel_state"] == "idle")
    assert beat["exit"]["generation"] == 1
    assert beat["exit"]["reason"] == reason
    assert number in (beat["exit"]["code"], beat["exit"]["signal"])
    assert words in beat["exit"]["message"]
    assert beat["exit"]["restarted"] is True
    assert beat["kernel_started_by"] == "spare"
    assert await (await member.client(connection)).json("os.environ['MINE']", "import os") == "kept"


async def test_a_clean_exit_is_not_restarted_on_failure_only(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    await _die(await member.client(), "exit()")
    beat = await member.until(lambda beat: beat["kernel_state"] == "dead")
    assert (beat["state"], beat["exit"]["code"], beat["exit"]["restarted"]) == ("claimed", 0, False)
    assert (await member.call("POST", "/v1/interrupt", {}))[1]["reason"] == "no_kernel"
    assert (await member.ok("POST", "/v1/restart", {}))["kernel_generation"] == 2


async def test_the_limit_of_restarts(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6, kernel={"restart_limit": 2})
    await member.promote()
    for generation in (1, 2, 3):
        await member.until(lambda beat, g=generation: beat["kernel_generation"] == g and beat["kernel_state"] == "idle")
        await _die(await member.client(), "import os; os._exit(1)")
    beat = await member.until(lambda beat: beat["state"] == "failed")
    assert beat["exit"]["restarted"] is False
    assert "3 times" in beat["message"]
    # A person may try again: the state was theirs to lose.
    assert (await member.ok("POST", "/v1/restart", {}))["kernel_generation"] == 4
    assert (await member.beat())["state"] == "claimed"


async def test_a_ready_member_that_crashes_is_ready_again(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    kernel = max(psutil.Process(member.process.pid).children(), key=lambda child: child.pid)
    kernel.kill()
    beat = await member.until(lambda beat: beat["kernel_generation"] == 2)
    assert beat["state"] == "ready"
    assert (await member.promote(env={"A": "1"}))["started"] == "running"


async def test_ports_held_by_a_stray_process_are_won_back(members: Members, ipykernel_6: str) -> None:
    """A user's forked daemon inherits the kernel's listening sockets."""
    member = await members.ready(ipykernel_6)
    await member.promote()
    await _spare_is_there(member)
    client = await member.client()
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n    os._exit(0)"
    await client.execute(daemon)
    member.note_processes()
    answer: dict[str, Any] = await member.ok("POST", "/v1/restart", {})
    assert answer["kernel_generation"] == 2
    assert await (await member.client()).execute("1 + 1") == "2"


@pytest.mark.parametrize("mode", ["signal", "message"])
async def test_interrupting_an_endless_loop(members: Members, any_python: str, mode: str) -> None:
    member = await members.ready(any_python, kernel={"interrupt_mode": mode})
    await member.promote()
    client = await member.client()
    looping = asyncio.create_task(client.execute("while True: pass"))
    await member.until(lambda beat: beat["kernel_state"] == "busy")
    await asyncio.sleep(0.1)
    await member.ok("POST", "/v1/interrupt", {})
    with pytest.raises(AssertionError, match="KeyboardInterrupt"):
        await looping
    assert (await member.until(lambda beat: beat["kernel_state"] == "idle"))["kernel_generation"] == 1


async def test_a_signal_reaches_the_kernels_group(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    client = await member.client()
    await client.execute("import signal; got = []; _ = signal.signal(signal.SIGUSR1, lambda *a: got.append(1))")
    await member.ok("POST", "/v1/signal", {"signal": 10})
    await asyncio.sleep(0.1)
    assert await client.execute("got") == "[1]"
    for bad in (0, 32, "9", None, True, 1.5):
        assert (await member.call("POST", "/v1/signal", {"signal": bad}))[0] == 400


async def test_usage_counts_the_tree(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    await member.promote()
    client = await member.client()
    await client.execute("import subprocess; p = subprocess.Popen(['sleep', '600']); x = b'x' * 50_000_000")
    usage = await member.ok("GET", "/v1/usage")
    assert usage["processes"] == 2
    assert usage["threads"] > 5
    assert 50_000_000 < usage["proportional_bytes"] <= usage["resident_bytes"]
    assert os.path.exists("/proc")
