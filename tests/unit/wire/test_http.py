from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from eg_knative.errors import LauncherError, LauncherUnreachableError
from eg_knative.wire.http import BODY_LIMIT, LINE_LIMIT, Address, Exchange, compose
from tests.unit.wire.servers import answer, fake_launcher, saying

REQUEST = compose(method="GET", resource="/v1/health", token="t", body=None)


async def body_of(directory: Path, *pieces: bytes, pause: float = 0.0) -> tuple[int, bytes]:
    async with (
        fake_launcher(directory, saying(*pieces, pause=pause)) as fake,
        Exchange(address=Address.parse(fake.address), request=REQUEST) as exchange,
    ):
        return exchange.status, await exchange.body()


def test_addresses() -> None:
    assert Address.parse("unix:/a b/c:d") == Address(path="/a b/c:d", ip=None, port=0)
    assert Address.parse("tcp:10.0.0.1:80") == Address(path=None, ip="10.0.0.1", port=80)
    assert Address.parse("tcp:[fe80::1]:80") == Address(path=None, ip="fe80::1", port=80)
    for wrong in (
        "",
        "unix:a",
        "tcp:1.2.3.4",
        "tcp:1.2.3.4:0",
        "tcp:1.2.3.4:65536",
        "tcp:fe80::1:80",
        "http://a",
        "tcp:1.2.3.4:80\n",
    ):
        with pytest.raises(LauncherError):
            Address.parse(wrong)


def test_a_request_as_bytes() -> None:
    assert compose(method="POST", resource="/v1/promote", token="abc", body=b'{"a":1}') == (
        b"POST /v1/promote HTTP/1.1\r\nHost: launcher\r\nAuthorization: Bearer abc\r\nConnection: close\r\n"
        b'Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
    )


async def test_a_body_of_known_length(tmp_path: Path) -> None:
    assert await body_of(tmp_path, answer(b"hello", status=b"404 Not Found") + b"more") == (404, b"hello")


async def test_a_body_in_chunks_however_it_arrives(tmp_path: Path) -> None:
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert await body_of(tmp_path, whole) == (200, b"hello world")
    assert await body_of(tmp_path, *(whole[i : i + 1] for i in range(len(whole)))) == (200, b"hello world")


async def test_a_body_until_the_end(tmp_path: Path) -> None:
    assert await body_of(tmp_path, b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo") == (200, b"hello")


@pytest.mark.parametrize(
    "head",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000,
    ],
)
async def test_nonsense_is_an_error_of_ours(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(LauncherError) as error:
        await body_of(tmp_path, head)
    assert not isinstance(error.value, LauncherUnreachableError)


@pytest.mark.parametrize(
    "part",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_half_an_answer_is_none(tmp_path: Path, part: bytes) -> None:
    with pytest.raises(LauncherUnreachableError):
        await body_of(tmp_path, part)


async def test_too_much_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="larger than"):
        await body_of(tmp_path, b"HTTP/1.1 200 OK\r\n\r\n", *([b"x" * 65_536] * (BODY_LIMIT // 65_536 + 1)))


async def test_lines_as_they_arrive_and_none_too_long(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = (head, b"3\r\na\nb\r\n", b"4\r\nc\nd\n\r\n", b"%x\r\n" % (LINE_LIMIT + 1) + b"x" * (LINE_LIMIT + 1) + b"\r\n")
    async with (
        fake_launcher(tmp_path, saying(*pieces)) as fake,
        Exchange(address=Address.parse(fake.address), request=REQUEST) as exchange,
    ):
        lines = exchange.lines()
        assert [await lines.__anext__() for _ in range(3)] == [b"a", b"bc", b"d"]
        with pytest.raises(LauncherError, match="line"):
            await lines.__anext__()


async def test_nobody_there(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path}/none", "tcp:127.0.0.1:1"):
        with pytest.raises(LauncherUnreachableError):
            async with Exchange(address=Address.parse(address), request=REQUEST):
                pass


async def test_a_socket_path_that_is_too_long_is_nobody(tmp_path: Path) -> None:
    with pytest.raises(LauncherUnreachableError):
        async with Exchange(address=Address.parse("unix:/" + "x" * 200), request=REQUEST):
            pass


async def test_bytes_that_trickle_do_not_stop_the_loop(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    started = time.monotonic()
    assert await body_of(tmp_path, *[answer(b"hello")[i : i + 1] for i in range(20)], answer(b"hello")[20:], pause=0.01) == (
        200,
        b"hello",
    )
    ticking.cancel()
    assert ticks >= (time.monotonic() - started) / 0.01 / 4
