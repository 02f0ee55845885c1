"""A session whose connection is dropped and opened again: JupyterLab does it at every notebook, and every network does it some
time.

What is asked for each time: the newer connection is served at once, no message is lost, none comes twice.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest

from eg_knative.gateway.relay import RelayLimits
from eg_knative.gateway.relays import Relays
from eg_knative.wire.backlog import BacklogLimits
from eg_knative.wire.channels import ChannelLimits
from tests.integration.channels.conftest import Gateway, KernelProcess
from tests.integration.channels.raw_client import RawClient, text_of

PAUSES = [0, 0.001, 0.005, 0.02, 0.1, 0.2]
COUNT = 30
CELL = f"import time\nfor i in range({COUNT}):\n    print(i, flush=True)\n    time.sleep(0.01)"


@pytest.fixture
async def kernel(gateway: Gateway, shared_kernel: KernelProcess) -> KernelProcess:
    gateway.attach(shared_kernel)
    return shared_kernel


def assert_once(messages: list[dict[str, Any]], request: str) -> None:
    """Every output of the cell, its reply and its idle, each exactly once and in order."""
    mine = [m for m in messages if m["parent_header"].get("msg_id") == request]
    identifiers = [m["header"]["msg_id"] for m in mine]
    assert len(identifiers) == len(set(identifiers)), "a message came twice"
    assert text_of(mine) == "".join(f"{i}\n" for i in range(COUNT))
    kinds = [m["msg_type"] for m in mine]
    assert kinds.count("execute_reply") == 1
    assert [m["content"]["execution_state"] for m in mine if m["msg_type"] == "status"] == ["busy", "idle"]


@pytest.mark.parametrize("pause", PAUSES)
@pytest.mark.parametrize("how", ["left", "dropped", "abandoned"])
@pytest.mark.parametrize("wait", [True, False], ids=["after-101", "before-101"])
async def test_opened_dropped_and_opened_again(
    gateway: Gateway, kernel: KernelProcess, how: str, wait: bool, pause: float
) -> None:
    session = uuid.uuid4().hex
    first = await RawClient.begin(gateway.url(kernel), session_id=session)
    gateway.clients.append(first)
    if wait:
        await first.accepted()
        first.request("kernel_info_request", {})  # as JupyterLab does, at once
    await asyncio.sleep(pause)
    if how == "dropped" or (how == "left" and not wait):
        first.drop()
    elif how == "left":
        first.send_frame(8, b"")
    started = time.monotonic()
    second = await gateway.client(kernel, session_id=session)
    status = await second.receive(5)
    until_status = time.monotonic() - started
    info = second.request("kernel_info_request", {})
    seen = await second.until_done(info)
    until_info = time.monotonic() - started
    request = second.execute("print('here')")
    seen += await second.until_done(request)
    assert status is not None
    assert status["msg_type"] in ("status", "kernel_info_reply")
    assert text_of(seen, request) == "here\n"
    identifiers = [m["header"]["msg_id"] for m in seen]
    assert len(identifiers) == len(set(identifiers))
    assert until_status < 1, "stock EG: 42 s"
    assert until_info < 1
    await asyncio.sleep(0.02)
    assert gateway.manager.connected[kernel.kernel_id] <= 2
    if how == "abandoned" and wait:
        await first.drain(1)
        assert first.close_code == 4409


@pytest.mark.parametrize("pause", PAUSES)
async def test_left_in_the_middle_of_a_cell(gateway: Gateway, kernel: KernelProcess, pause: float) -> None:
    session = uuid.uuid4().hex
    first = await gateway.client(kernel, session_id=session)
    request = first.execute(CELL)
    while (message := await first.receive()) is not None and message["msg_type"] != "stream":
        pass
    assert message is not None
    busy = {
        "msg_type": "status",
        "content": {"execution_state": "busy"},
        "parent_header": {"msg_id": request},
        "header": {"msg_id": "-"},
    }
    seen = [busy, message]
    seen += await first.leave()
    await asyncio.sleep(pause)
    second = await gateway.client(kernel, session_id=session)
    seen += await second.until_done(request)
    assert_once(seen, request)


@pytest.mark.parametrize("pause", PAUSES)
async def test_the_newer_connection_takes_over_in_the_middle_of_a_cell(
    gateway: Gateway, kernel: KernelProcess, pause: float
) -> None:
    session = uuid.uuid4().hex
    first = await gateway.client(kernel, session_id=session)
    request = first.execute(CELL)
    await asyncio.sleep(pause)
    second = await gateway.client(kernel, session_id=session)
    rest, seen = await asyncio.gather(second.until_done(request), first.drain(5))
    assert first.close_code == 4409
    assert_once(seen + rest, request)


async def test_requests_sent_just_before_leaving_are_answered_to_the_next_connection(
    gateway: Gateway, kernel: KernelProcess
) -> None:
    session = uuid.uuid4().hex
    first = await gateway.client(kernel, session_id=session)
    request = first.execute(CELL)
    seen = await first.leave()
    second = await gateway.client(kernel, session_id=session)
    seen += await second.until_done(request)
    assert_once(seen, request)


async def test_many_reconnections_during_one_cell(gateway: Gateway, kernel: KernelProcess) -> None:
    session = uuid.uuid4().hex
    client = await gateway.client(kernel, session_id=session)
    request = client.execute(CELL)
    seen: list[dict[str, Any]] = []
    for _ in range(20):
        newer = await gateway.client(kernel, session_id=session)
        seen += await client.drain(5)
        client = newer
    seen += await client.until_done(request)
    assert_once(seen, request)
    await asyncio.sleep(0.05)
    assert gateway.manager.connected[kernel.kernel_id] == 1


async def test_what_is_kept_is_bounded_and_says_so(gateway: Gateway, shared_kernel: KernelProcess) -> None:
    limits = RelayLimits(channels=ChannelLimits(backlog=BacklogLimits(messages=200, size=10**6)))
    gateway.relays = gateway.settings["kernel_relays"] = Relays(context=gateway.context, limits=limits)
    gateway.attach(shared_kernel)
    session = uuid.uuid4().hex
    first = await gateway.client(shared_kernel, session_id=session)
    code = "from IPython.display import display\nfor i in range(2000): display({'text/plain': str(i)}, raw=True)"
    request = first.execute(code)
    first.drop()
    witness = await gateway.client(shared_kernel)
    await asyncio.sleep(0.5)
    await witness.drain(0.5)
    second = await gateway.client(shared_kernel, session_id=session)
    seen = await second.until_done(request)
    assert "were let go while nobody was connected" in text_of(seen)
    shown = [int(m["content"]["data"]["text/plain"]) for m in seen if m["msg_type"] == "display_data"]
    assert shown == list(range(2000 - len(shown), 2000)), "the newest are kept"
    assert 100 < len(shown) <= 200


async def test_sessions_that_never_come_back_do_not_pile_up(gateway: Gateway, kernel: KernelProcess) -> None:
    for _ in range(12):
        client = await gateway.client(kernel)
        client.drop()
        await asyncio.sleep(0.01)
    await gateway.client(kernel)
    await asyncio.sleep(0.05)
    relay = gateway.relays.get(kernel.kernel_id)
    assert relay is not None
    assert relay.connections == 1
    assert sum(1 for _ in relay._all_channels()) <= 5


@pytest.mark.parametrize("away", [0.01, 0.1, 0.5])
async def test_the_next_gateway_process_gets_the_reply_of_a_cell_that_was_running(
    gateway: Gateway, kernel: KernelProcess, away: float
) -> None:
    session = uuid.uuid4().hex
    first = await gateway.client(kernel, session_id=session)
    request = first.execute(CELL)
    while (message := await first.receive()) is not None and message["msg_type"] != "stream":
        pass
    await gateway.relays.close()
    gateway.relays = gateway.settings["kernel_relays"] = Relays(context=gateway.context)
    gateway.attach(kernel)
    await asyncio.sleep(away)
    await gateway.client(kernel)  # a stranger comes first, and takes the identity that the reply is addressed to
    await asyncio.sleep(away)
    second = await gateway.client(kernel, session_id=session)
    seen = await second.until_done(request)
    assert [m["content"]["status"] for m in seen if m["msg_type"] == "execute_reply"] == ["ok"]
    assert text_of(seen, request).endswith(f"{COUNT - 1}\n")
