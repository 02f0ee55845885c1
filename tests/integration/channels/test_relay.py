"""Cells, outputs and clients of one running kernel through the relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from itertools import pairwise
from typing import Any

import pytest
import zmq

from eg_knative.gateway.websocket import V1
from eg_knative.wire.channels import connect_channels
from tests.integration.channels.conftest import Gateway, KernelProcess
from tests.integration.channels.raw_client import RawClient, text_of


@pytest.fixture
async def kernel(gateway: Gateway, shared_kernel: KernelProcess) -> KernelProcess:
    gateway.attach(shared_kernel)
    return shared_kernel


async def test_a_cell_answers(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    seen = await client.until_done(client.execute("print(6 * 7)"))
    assert text_of(seen) == "42\n"
    assert seen[0]["msg_type"] == "status", "the first message tells the kernel's status"
    own = [m["msg_type"] for m in seen if m["parent_header"]]
    assert own.count("execute_reply") == 1
    assert own.count("execute_input") == 1


async def test_the_prepared_channels_serve_the_first_client(
    gateway: Gateway, shared_kernel: KernelProcess, context: zmq.Context[Any]
) -> None:
    shared_kernel.prepared = await connect_channels(context=context, connection=shared_kernel.connection, timeout=20)
    prepared = shared_kernel.prepared
    gateway.attach(shared_kernel)
    while prepared.execution_state == "starting":  # the kernel's main thread answers a little after its control thread
        await asyncio.sleep(0.01)
    assert prepared.execution_state == "idle"
    assert json.loads(prepared.kernel_info or b"")["implementation"] == "ipython"
    client = await gateway.client(shared_kernel)
    first = await client.receive()
    assert first is not None
    assert first["content"] == {"execution_state": "idle"}
    assert first["header"]["session"] == prepared.kernel_session, "JupyterLab drops messages when the session changes"
    await client.until_done(client.execute("1"))
    assert not prepared.pending


async def test_no_reply_to_our_own_questions_reaches_a_client(gateway: Gateway, kernel: KernelProcess) -> None:
    clients = [await gateway.client(kernel) for _ in range(4)]
    requests = [client.request("kernel_info_request", {}) for client in clients]
    for client, request in zip(clients, requests, strict=True):
        seen = [*await client.until_done(request), *await client.drain(0.1)]
        assert sum(m["channel"] == "shell" for m in seen) == 1
        assert not [m for m in seen if str(m["parent_header"].get("msg_id", "")).startswith("egk-")]


async def test_two_clients_see_one_kernel(gateway: Gateway, kernel: KernelProcess) -> None:
    one, two = await gateway.client(kernel), await gateway.client(kernel)
    await two.until_done(two.request("kernel_info_request", {}))
    request = one.execute("print('for both')")
    assert text_of(await one.until_done(request)) == "for both\n"
    other = await two.drain(0.2)
    assert text_of(other, request) == "for both\n"
    assert not [m for m in other if m["msg_type"] == "execute_reply"], "a reply belongs to who asked"
    assert gateway.manager.connected[kernel.kernel_id] == 2


async def test_status_and_activity_are_known_without_a_second_subscription(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    gateway.activity.clear()
    await client.until_done(client.execute("pass"))
    states = [state for state, _ in gateway.activity]
    assert "busy" in states
    assert states[-1] == "idle"
    times = [moment for _, moment in gateway.activity]
    assert times == sorted(times)


async def test_input(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    request = client.execute("print('hello ' + input('who? '))", allow_stdin=True)
    while (message := await client.receive()) is not None and message["msg_type"] != "input_request":
        pass
    assert message is not None
    assert message["channel"] == "stdin"
    client.request("input_reply", {"value": "world"}, channel="stdin", parent=message["header"])
    assert text_of(await client.until_done(request)) == "hello world\n"


async def test_interrupt(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    request = client.execute("import time\nprint('on', flush=True)\ntime.sleep(60)")
    while (message := await client.receive()) is not None and message["msg_type"] != "stream":
        pass
    kernel.interrupt()
    seen = await client.until_done(request)
    assert [m["content"]["ename"] for m in seen if m["msg_type"] == "error"] == ["KeyboardInterrupt"]


async def test_a_busy_kernel_serves_a_new_client_at_once_and_says_busy(gateway: Gateway, kernel: KernelProcess) -> None:
    one = await gateway.client(kernel)
    request = one.execute("import time\nfor i in range(20):\n    print(i, flush=True)\n    time.sleep(0.05)")
    while (message := await one.receive()) is not None and message["msg_type"] != "stream":
        pass
    two = await gateway.client(kernel)
    first = await two.receive(0.5)
    assert first is not None
    assert first["content"] == {"execution_state": "busy"}
    assert text_of(await two.drain(0.3), request), "output of the running cell reaches who came later"
    await one.until_done(request)


async def test_ten_thousand_lines(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    seen = await client.until_done(client.execute("for i in range(10_000): print(i)"))
    assert text_of(seen) == "".join(f"{i}\n" for i in range(10_000))


async def test_ten_thousand_messages(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    code = "from IPython.display import display\nfor i in range(10_000): display({'text/plain': str(i)}, raw=True)"
    seen = await client.until_done(client.execute(code))
    shown = [m["content"]["data"]["text/plain"] for m in seen if m["msg_type"] == "display_data"]
    assert shown == [str(i) for i in range(10_000)]


@pytest.mark.parametrize("size", [5_000_000, 40_000_000])
async def test_a_large_output(gateway: Gateway, kernel: KernelProcess, size: int) -> None:
    client = await gateway.client(kernel)
    code = f"from IPython.display import display\ndisplay({{'text/plain': 'x' * {size}}}, raw=True)"
    seen = await client.until_done(client.execute(code))
    shown = [m["content"]["data"]["text/plain"] for m in seen if m["msg_type"] == "display_data"]
    assert [len(text) for text in shown] == [size]


COMM = """
from comm import create_comm
comm = create_comm(target_name="egk.test", data={"open": 1}, buffers=[b"\\x00\\xff" * 8])
comm.on_msg(lambda msg: comm.send({"back": msg["content"]["data"]}, buffers=[bytes(b)[::-1] for b in msg["buffers"]]))
"""


async def test_a_comm_with_buffers(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel)
    seen = await client.until_done(client.execute(COMM))
    (opened,) = [m for m in seen if m["msg_type"] == "comm_open"]
    assert opened["buffers"] == [b"\x00\xff" * 8]
    message = client.message("comm_msg", {"comm_id": opened["content"]["comm_id"], "data": {"n": 1}})
    del message["buffers"]
    pieces = [json.dumps(message).encode(), b"abc", b"", bytes(range(256))]
    offsets = [4 * (len(pieces) + 1)]
    for piece in pieces[:-1]:
        offsets.append(offsets[-1] + len(piece))
    client.send_frame(2, struct.pack(f"!{len(pieces) + 1}I", len(pieces), *offsets) + b"".join(pieces))
    while (answer := await client.receive()) is not None and answer["msg_type"] != "comm_msg":
        pass
    assert answer is not None
    assert answer["content"]["data"] == {"back": {"n": 1}}
    assert answer["buffers"] == [b"cba", b"", bytes(range(256))[::-1]]


async def test_the_binary_subprotocol(gateway: Gateway, kernel: KernelProcess) -> None:
    client = await gateway.client(kernel, subprotocol=V1)
    assert client.subprotocol == V1
    message = client.message("execute_request", {"code": "print('v1 é')", "silent": False})
    parts = [json.dumps(message[field]).encode() for field in ("header", "parent_header", "metadata", "content")]
    offsets = [8 * (len(parts) + 3)]
    for piece in (b"shell", *parts):
        offsets.append(offsets[-1] + len(piece))
    client.send_frame(2, struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"shell" + b"".join(parts))
    text, done = "", set()
    while done != {"execute_reply", "idle"}:
        frame = await client.receive_frame()
        assert frame is not None
        assert frame[0] == 2
        (count,) = struct.unpack_from("<Q", frame[1])
        offsets = list(struct.unpack_from(f"<{count}Q", frame[1], 8))
        _, header, parent, _, content = (frame[1][a:b] for a, b in pairwise(offsets))
        if json.loads(parent).get("msg_id") != message["header"]["msg_id"]:
            continue
        kind = json.loads(header)["msg_type"]
        text += json.loads(content).get("text", "")
        done |= {kind, json.loads(content).get("execution_state", "")} & {"execute_reply", "idle"}
    assert text == "v1 é\n"


GARBAGE = [
    (1, b"not json"),
    (1, b"[]"),
    (1, b"{}"),
    (1, b'{"header": {}, "channel": "shell"}'),
    (1, b'{"header": {"msg_id": 1, "msg_type": "x"}, "channel": "shell"}'),
    (1, b'{"header": {"msg_id": "a", "msg_type": "execute_request"}, "channel": "iopub"}'),
    (1, b'{"header": {"msg_id": "a", "msg_type": "execute_request"}, "channel": ["shell"]}'),
    (1, b'{"header": {"msg_id": "a", "msg_type": "execute_request"}, "content": []}'),
    (1, b"[" * 100_000),
    (1, b'{"header": ' + b"9" * 5000 + b"}"),
    (2, b""),
    (2, b"\xff" * 100),
    (2, struct.pack("!3I", 2, 12, 8) + b"{}"),
    (2, struct.pack("!I", 0)),
    (2, struct.pack("<Q", 2**63) + b"\0" * 64),
    (2, struct.pack("<7Q", 6, 56, 61, 63, 65, 67, 9_999_999) + b"shell{}{}{}{}"),
]


@pytest.mark.parametrize("subprotocol", [None, V1])
async def test_garbage_is_ignored_and_disturbs_nobody(
    gateway: Gateway, kernel: KernelProcess, subprotocol: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    witness = await gateway.client(kernel)
    client = await gateway.client(kernel, subprotocol=subprotocol)
    for opcode, payload in GARBAGE:
        client.send_frame(opcode, payload)
    assert text_of(await witness.until_done(witness.execute("print('here')"))) == "here\n"
    if subprotocol is None:
        request = client.execute("print('still here')")
        assert text_of(await client.until_done(request), request) == "still here\n"
    records = [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]
    assert not records
    complaints = [record for record in caplog.records if "Ignored a frame" in record.message]
    assert len(complaints) == 1, "one warning now and then, not one a frame"
    assert "9999" not in caplog.text


@pytest.mark.parametrize(("opcode", "payload"), [(1, b"\xff\xfe"), (1, b"x" * (11 * 1024**2)), (3, b"reserved")])
async def test_a_frame_that_breaks_the_protocol_ends_its_connection_alone(
    gateway: Gateway, kernel: KernelProcess, opcode: int, payload: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    witness, client = await gateway.client(kernel), await gateway.client(kernel)
    client.send_frame(opcode, payload)
    await client.drain(2)
    assert await client.receive() is None
    assert text_of(await witness.until_done(witness.execute("print('here')"))) == "here\n"
    assert not [record for record in caplog.records if record.exc_info]
    await asyncio.sleep(0.05)
    assert gateway.manager.connected[kernel.kernel_id] == 1


async def test_only_allowed_message_types_pass(gateway: Gateway, kernel: KernelProcess) -> None:
    gateway.manager.allowed_message_types = ["kernel_info_request"]
    client = await gateway.client(kernel)
    client.execute("print('no')")
    seen = [*await client.until_done(client.request("kernel_info_request", {})), *await client.drain(0.2)]
    assert not text_of(seen)
    assert not [m for m in seen if m["msg_type"] == "execute_reply"]


async def test_tracebacks_are_masked_where_the_operator_says_so(gateway: Gateway, kernel: KernelProcess) -> None:
    gateway.manager.allow_tracebacks = False  # type: ignore[misc]
    client = await gateway.client(kernel)
    seen = await client.until_done(client.execute("secret = 1\nraise ValueError('secret')"))
    (error,) = [m for m in seen if m["msg_type"] == "error"]
    (reply,) = [m for m in seen if m["msg_type"] == "execute_reply"]
    assert error["content"] == {"ename": "ExecutionError", "evalue": "Execution error", "traceback": ["hidden"]}
    assert reply["content"]["status"] == "error"
    assert reply["content"]["traceback"] == ["hidden"]
    assert "secret" not in json.dumps([error["content"], reply["content"]])


async def test_output_past_the_rate_limit_is_held_back_with_a_word(gateway: Gateway, kernel: KernelProcess) -> None:
    gateway.settings.update(iopub_msg_rate_limit=50, rate_limit_window=3.0)
    client = await gateway.client(kernel)
    code = "from IPython.display import display\nfor i in range(1000): display({'text/plain': str(i)}, raw=True)"
    seen = await client.until_done(client.execute(code))
    assert sum(m["msg_type"] == "display_data" for m in seen) == 150
    assert text_of(seen).count("IOPub message rate exceeded.") == 1
    assert text_of(await client.until_done(client.execute("print('on')"))) == "on\n", "idle starts the count anew"


async def test_a_client_that_does_not_read_is_disconnected_and_gets_the_rest_when_it_comes_back(
    gateway: Gateway, kernel: KernelProcess
) -> None:
    witness = await gateway.client(kernel)
    gateway.settings.update(eg_channels_unsent_bytes=2_000_000)
    slow = await gateway.client(kernel, session_id="slow", receive_buffer=4096)
    code = "from IPython.display import display\nfor i in range(200): display({'text/plain': f'{i}-' + 'x' * 50_000}, raw=True)"
    request = slow.execute(code)
    seen: list[dict[str, Any]] = []
    while not any(m["msg_type"] == "status" and m["content"]["execution_state"] == "idle" for m in seen if m["parent_header"]):
        message = await witness.receive()
        assert message is not None
        seen.append(message)
    assert sum(m["msg_type"] == "display_data" for m in seen) == 200, "nobody else is held up"
    first = await slow.drain(1.0)
    assert await slow.receive() is None
    assert slow.close_code in (4408, None)  # the code comes after what waits, and not at all where that takes too long
    again = await gateway.client(kernel, session_id="slow")
    second = await again.drain(1.0)
    shown = [m["content"]["data"]["text/plain"] for m in (*first, *second) if m["msg_type"] == "display_data"]
    assert [text.rstrip("x") for text in shown] == [f"{i}-" for i in range(200)], "none lost, none twice, in order"
    assert sum(m["msg_type"] == "execute_reply" for m in (*first, *second) if m["parent_header"].get("msg_id") == request) == 1


@pytest.mark.parametrize("answers", [True, False])
async def test_a_client_that_answers_no_pings_is_disconnected(gateway: Gateway, kernel: KernelProcess, answers: bool) -> None:
    gateway.settings.update(ws_ping_interval=50, ws_ping_timeout=300)
    client = await gateway.client(kernel)
    client.answers_pings = answers
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_read_on(client), 1.5)
    assert client.close_code == (None if answers else 4408)


async def _read_on(client: RawClient) -> None:
    while await client.receive() is not None:
        pass


async def test_an_unknown_kernel_is_not_found(gateway: Gateway) -> None:
    with pytest.raises(AssertionError, match="404"):
        await RawClient.open(f"ws://127.0.0.1:{gateway.port}/api/kernels/0-0-0-0-0/channels", session_id="x")
