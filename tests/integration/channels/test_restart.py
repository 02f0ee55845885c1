"""What clients see when their kernel dies or is restarted under an open WebSocket."""

from __future__ import annotations

import asyncio
import socket
import time
from itertools import groupby
from typing import Any

import pytest

from tests.integration.channels.conftest import Gateway, KernelProcess
from tests.integration.channels.raw_client import RawClient, text_of

REASON = "out of memory: the kernel used 512 MiB and was killed (signal 9)"


async def begin_cell(client: RawClient) -> str:
    await client.until_done(client.execute("import time; x = 1"))
    request = client.execute("print('on', flush=True)\ntime.sleep(60)")
    while (message := await client.receive()) is not None and message["msg_type"] != "stream":
        pass
    return request


def states(messages: list[dict[str, Any]]) -> list[str]:
    """Statuses that belong to no request."""
    return [m["content"]["execution_state"] for m in messages if m["msg_type"] == "status" and not m["parent_header"]]


async def settle(kernel: KernelProcess) -> None:
    """A new process on the kernel's ports."""
    kernel.end()
    kernel.start()
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", kernel.connection.shell_port)) == 0:
                return
        await asyncio.sleep(0.02)
    raise AssertionError("the kernel was not bound within 8 s")


async def test_killed_in_the_middle_of_a_cell_and_restarted(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    request = await begin_cell(client)
    queued = client.execute("print('never')")
    await asyncio.sleep(0.05)
    own_kernel.end()
    own_kernel.tell("died", message=REASON, exit={"restarted": True})
    own_kernel.tell("restarting")
    seen = await client.until_done(queued)
    (error,) = [m for m in seen if m["msg_type"] == "error" and m["parent_header"]["msg_id"] == request]
    assert error["content"]["ename"] == "KernelDied"
    assert error["content"]["evalue"] == REASON
    reply, second = [m for m in seen if m["msg_type"] == "execute_reply"]
    assert reply["content"]["status"] == second["content"]["status"] == "error"
    assert reply["parent_header"]["msg_id"] == request
    assert "Its variables are gone" in text_of(seen, request)
    assert len({m["header"]["session"] for m in seen}) == 1, "JupyterLab drops messages when the session changes"
    late = client.execute("print('x' in dir())")  # while it restarts: it waits
    await settle(own_kernel)
    own_kernel.tell("restarted", connection=own_kernel.connection)
    after = await client.until_done(late)
    assert text_of(after, late) == "False\n"
    after += await client.drain(0.5)
    told = [state for state, _ in groupby(states([*seen, *after]))]  # the kernel says `starting` itself too, when we are in time
    assert told[-3:] == ["restarting", "starting", "idle"]


async def test_who_comes_back_during_a_restart_is_not_told_again_to_come_back(
    gateway: Gateway, own_kernel: KernelProcess
) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    own_kernel.end()
    own_kernel.tell("died", message=REASON, exit={"restarted": True})
    own_kernel.tell("restarting")
    assert "restarting" in states(await client.drain(0.2))
    again = await gateway.client(own_kernel, session_id="s")  # the same session, as JupyterLab does when it hears `restarting`
    assert set(states(await again.drain(0.2))) == {"starting"}
    request = again.execute("print('here')")
    await settle(own_kernel)
    own_kernel.tell("restarted", connection=own_kernel.connection)
    seen = await again.until_done(request)
    assert text_of(seen, request) == "here\n", seen


async def test_a_death_without_a_restart(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    request = await begin_cell(client)
    own_kernel.end()
    own_kernel.tell("gone", message=REASON)
    await client.until_done(request)
    assert states(await client.drain(0.2)) == ["dead"]
    answer = await client.until_done(client.execute("1"))
    assert [m["content"]["evalue"] for m in answer if m["msg_type"] == "error"] == [REASON]
    relay = gateway.relays.get(own_kernel.kernel_id)
    assert relay is not None
    assert (relay.execution_state, relay.reason) == ("dead", REASON)
    gateway.relays.detach(own_kernel.kernel_id)
    await client.drain(1)
    assert client.close_code == 4410


async def test_restarted_by_request(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    one, two = await gateway.client(own_kernel), await gateway.client(own_kernel)
    request = await begin_cell(one)
    asked = one.request("kernel_info_request", {})  # it waits behind the cell
    await asyncio.sleep(0.05)
    own_kernel.tell("restarting")
    await settle(own_kernel)
    own_kernel.tell("restarted", connection=own_kernel.connection)
    seen = await one.until_done(request)
    seen += await one.until_done(asked)
    assert [m["content"]["status"] for m in seen if m["msg_type"] == "execute_reply"] == ["aborted"]
    assert [m["content"]["status"] for m in seen if m["msg_type"] == "kernel_info_reply"] == ["ok"]
    assert "restarting" not in states(seen), "JupyterLab takes it for a crash"
    for client in (one, two):
        again = client.execute("print('again')")
        assert text_of(await client.until_done(again), again) == "again\n"


async def test_restarted_on_new_ports_with_a_new_key(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    await client.until_done(client.execute("x = 1"))
    own_kernel.connection = own_kernel.new_connection()
    own_kernel.tell("restarting")
    await settle(own_kernel)
    own_kernel.tell("restarted", connection=own_kernel.connection)
    request = client.execute("print('x' in dir())")
    assert text_of(await client.until_done(request), request) == "False\n"


async def test_a_cell_is_answered_soon_after_a_restart(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    await client.until_done(client.execute("1"))
    own_kernel.tell("restarting")
    await settle(own_kernel)
    warm = await gateway.client(own_kernel)  # the kernel's first answer, which costs it imports
    own_kernel.tell("restarted", connection=own_kernel.connection)
    await warm.until_done(warm.execute("1"))
    own_kernel.tell("restarting")
    request = client.execute("print('late')")
    started = time.monotonic()
    own_kernel.tell("restarted", connection=own_kernel.connection)
    assert text_of(await client.until_done(request), request) == "late\n"
    assert time.monotonic() - started < 0.5


async def test_messages_past_the_bound_are_answered_with_an_error(gateway: Gateway, own_kernel: KernelProcess) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel)
    await client.until_done(client.execute("x = 0"))
    own_kernel.tell("restarting")
    requests = [client.execute("x = 1") for _ in range(2_001)]
    seen = await client.until_done(requests[-1])
    assert [m["content"]["ename"] for m in seen if m["msg_type"] == "error"] == ["TooManyMessages"]


async def test_pending_requests_of_a_session_that_is_away_are_answered_when_it_comes_back(
    gateway: Gateway, own_kernel: KernelProcess
) -> None:
    gateway.attach(own_kernel)
    client = await gateway.client(own_kernel, session_id="away")
    request = await begin_cell(client)
    await client.leave()
    own_kernel.end()
    own_kernel.tell("died", message=REASON, exit={"restarted": False})
    again = await gateway.client(own_kernel, session_id="away")
    seen = await again.until_done(request)
    assert [m["content"]["evalue"] for m in seen if m["msg_type"] == "error"] == [REASON]
    assert states(seen + await again.drain(0.2))[-1] == "dead"


@pytest.mark.parametrize("kind", ["lost", "found", "beat"])
async def test_what_concerns_only_the_launcher_is_not_told(gateway: Gateway, shared_kernel: KernelProcess, kind: str) -> None:
    gateway.attach(shared_kernel)
    client = await gateway.client(shared_kernel)
    await client.until_done(client.request("kernel_info_request", {}))
    shared_kernel.tell(kind, message="?")
    assert await client.drain(0.2) == []
