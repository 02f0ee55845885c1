"""The address as an enemy or a careless client meets it: tokens, bodies, garbage, slowness, beats that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.integration.launcher.launching import TOKEN

if TYPE_CHECKING:
    from tests.integration.launcher.launching import Member, Members


@pytest.fixture
async def member(members: Members) -> Member:
    """Ready without a kernel: what is tested here does not need one."""
    member = members.start(["no-such-kernel", "{connection_file}"])
    await member.until(lambda beat: beat["state"] == "ready")
    return member


async def _raw(member: Member, data: bytes, *, timeout: float = 5) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(member.directory / "socket"))
    writer.write(data)
    try:
        async with asyncio.timeout(timeout):
            return await reader.read(65536)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_nothing_without_the_token(member: Member) -> None:
    wrong = [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer \xff\xfe"]
    body = json.dumps({"claim_id": "c", "kernel_id": "k"})
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(member.directory / "socket"))) as session:
        for authorization, path in itertools.product(wrong, ["/v1/health", "/v1/promote", "/nothing"]):
            headers = {} if authorization is None else {"Authorization": authorization}
            async with session.post(f"http://launcher{path}", headers=headers, data=body) as response:
                assert response.status == 401, (authorization, path)
                assert (await response.json())["reason"] == "unauthorized"
    assert (await member.beat())["claim_id"] is None


ERRORS = [
    ("GET", "/", 404, "unknown_resource"),
    ("GET", "/v2/health", 404, "unknown_resource"),
    ("GET", "/v1/health/", 404, "unknown_resource"),
    ("POST", "/v1/health", 405, "method_not_allowed"),
    ("GET", "/v1/promote", 405, "method_not_allowed"),
    ("DELETE", "/v1/beats", 405, "method_not_allowed"),
    ("GET", "/v1/connection", 409, "not_ready"),
    ("GET", "/v1/beats?interval=0", 400, "bad_request"),
    ("GET", "/v1/beats?interval=61", 400, "bad_request"),
    ("GET", "/v1/beats?interval=nan", 400, "bad_request"),
    ("GET", "/v1/beats?interval=soon", 400, "bad_request"),
    ("POST", "/v1/restart", 409, "not_claimed"),
    ("POST", "/v1/interrupt", 409, "no_kernel"),
]


async def test_errors_have_words(member: Member) -> None:
    for method, path, status, reason in ERRORS:
        answer = await member.call(method, path)
        assert (answer[0], answer[1]["reason"]) == (status, reason), (method, path)
        assert isinstance(answer[1]["message"], str)


async def test_bodies_that_are_no_promotion(member: Member) -> None:
    for body in (b"{", b"[]", b'"x"', b"\xff\xfe\x00", b"null", b"[" * 100_000, b'{"claim_id": NaN}'):
        async with member.session.post("http://launcher/v1/promote", data=body) as response:
            assert response.status == 400, body[:20]
            assert (await response.json())["reason"] == "bad_request"
    assert (await member.beat())["state"] == "ready"


async def test_a_body_too_large_is_refused_before_it_is_read(member: Member) -> None:
    head = f"POST /v1/promote HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99999999\r\n\r\n"
    answer = await _raw(member, head.encode())
    assert b" 413 " in answer.split(b"\r\n")[0]
    assert b"body_too_large" in answer


async def test_a_body_in_chunks_is_bounded_too(member: Member) -> None:
    async def chunks() -> Any:
        for _ in range(40):
            yield b"x" * 100_000

    with contextlib.suppress(aiohttp.ClientError):  # it may see the connection closed before it has sent all
        async with member.session.post("http://launcher/v1/promote", data=chunks()) as response:
            assert response.status in (400, 413)
    assert (await member.beat())["state"] == "ready"


async def test_garbage_and_silence_cost_nothing(member: Member) -> None:
    for junk in (b"\x00\xff" * 500, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 100_000, b"\x16\x03\x01\x02\x00" * 50):
        with contextlib.suppress(TimeoutError, OSError):
            await _raw(member, junk, timeout=0.3)
    idle = [await asyncio.open_unix_connection(str(member.directory / "socket")) for _ in range(200)]
    started = time.monotonic()
    assert (await member.ok("GET", "/v1/health"))["state"] == "ready"
    assert time.monotonic() - started < 1
    for _, writer in idle:
        writer.close()


async def test_a_slow_body_is_cut_off(member: Member) -> None:
    head = f"POST /v1/promote HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000\r\n\r\n{{"
    started = time.monotonic()
    assert await _raw(member, head.encode(), timeout=15) == b""
    assert 9 < time.monotonic() - started < 12
    assert (await member.beat())["state"] == "ready"


async def test_beats_come_at_their_interval_and_at_changes(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    beats: list[tuple[float, dict[str, Any]]] = []

    async def listen() -> None:
        async for beat in member.beats(interval=60):
            beats.append((time.monotonic(), beat))  # noqa: PERF401 - looked at while it grows

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.3)
    assert len(beats) == 1
    asked = time.monotonic()
    await member.promote()
    await asyncio.sleep(0.2)
    assert beats[1][1]["state"] == "claimed"
    assert beats[1][0] - asked < 0.5
    client = await member.client()
    await client.send("execute_request", {"code": "import time; time.sleep(0.5)", "silent": False})
    await asyncio.sleep(0.4)
    assert beats[-1][1]["kernel_state"] == "busy"
    assert beats[-1][1]["idle_seconds"] == 0
    await asyncio.sleep(0.4)
    assert beats[-1][1]["kernel_state"] == "idle"
    assert [beat["sequence"] for _, beat in beats] == list(range(1, len(beats) + 1))
    await member.ok("POST", "/v1/shutdown", {"grace_seconds": 1})
    await listening
    assert beats[-1][1]["state"] == "stopping"


async def test_a_reader_that_does_not_read_costs_nobody_else(member: Member) -> None:
    reader, writer = await asyncio.open_unix_connection(str(member.directory / "socket"), limit=1024)
    request = f"GET /v1/beats?interval=0.1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    writer.write(request.encode())
    await asyncio.sleep(0.5)
    assert (await member.beat())["state"] == "ready"
    assert not reader.at_eof()
    writer.close()
