"""The response port over real sockets: good payloads arrive whatever else is connected."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from eg_knative.wire.eg_payload import new_private_key, public_key_text
from eg_knative.wire.push_listener import PushListener
from eg_knative.wire.waiting_launches import WaitingLaunches
from tests.unit.push.payloads import KERNEL_ID, connection_information, version_1

PRIVATE_KEY = new_private_key()
PAYLOAD = version_1(connection_information(), public_key=public_key_text(PRIVATE_KEY))


class Served:
    """A running listener, what waits on it, and its address."""

    def __init__(self, listener: PushListener, launches: WaitingLaunches, address: tuple[str, int]) -> None:
        self.listener = listener
        self.launches = launches
        self.address = address

    async def push(self, data: bytes) -> None:
        """Connect, send and close, as a launcher does."""
        _reader, writer = await asyncio.open_connection(*self.address)
        writer.write(data)
        await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def launch(self) -> float:
        """Seconds from a launcher's push until the launch that waits has the answer."""
        self.launches.register(KERNEL_ID, owner=None)
        began = time.perf_counter()
        await self.push(PAYLOAD)
        assert (await self.launches.take(KERNEL_ID, timeout=10))["hb_port"] == 40005
        return time.perf_counter() - began


@asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[Served]:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    bound.listen()
    launches = WaitingLaunches()
    listener = PushListener(
        bound_socket=bound,
        private_key=PRIVATE_KEY,
        launches=launches,
        log=logging.getLogger("test.push"),
        **limits,  # type: ignore[arg-type]
    )
    await listener.start()
    try:
        yield Served(listener, launches, bound.getsockname())
    finally:
        await listener.close()
        assert listener.connections == 0


@contextlib.contextmanager
def clients(count: int, address: tuple[str, int], data: bytes = b"") -> Iterator[list[socket.socket]]:
    opened = []
    try:
        for _ in range(count):
            client = socket.create_connection(address, timeout=5)
            opened.append(client)
            if data:
                with contextlib.suppress(OSError):
                    client.sendall(data)
        yield opened
    finally:
        for client in opened:
            client.close()


async def until(condition: object, *, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the awaited state did not come"
        await asyncio.sleep(0.005)


async def test_a_launchers_payload_arrives() -> None:
    async with serving() as served:
        assert await served.launch() < 1


async def test_a_payload_in_small_pieces_arrives() -> None:
    async with serving() as served:
        served.launches.register(KERNEL_ID, owner=None)
        _reader, writer = await asyncio.open_connection(*served.address)
        for start in range(0, len(PAYLOAD), 100):
            writer.write(PAYLOAD[start : start + 100])
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()
        assert (await served.launches.take(KERNEL_ID, timeout=5))["shell_port"] == 40001


async def test_an_idle_client_holds_up_nobody() -> None:
    async with serving() as served:
        with clients(1, served.address):
            await until(lambda: served.listener.connections == 1)
            assert await served.launch() < 1


async def test_a_thousand_clients_hold_up_nobody_and_are_bounded() -> None:
    async with serving(connection_limit=64) as served:
        with await asyncio.to_thread(lambda: contextlib.ExitStack()) as stack:
            await asyncio.to_thread(stack.enter_context, clients(1000, served.address))
            await until(lambda: served.listener.connections == 64)
            assert await served.launch() < 1
            assert served.listener.connections <= 64


async def test_the_client_that_was_silent_longest_goes_first() -> None:
    async with serving(connection_limit=3) as served:
        with clients(3, served.address) as (first, second, third):
            await until(lambda: served.listener.connections == 3)
            first.sendall(b"A")
            await asyncio.sleep(0.05)
            with clients(1, served.address):
                await asyncio.sleep(0.05)
                second.settimeout(2)
                with contextlib.suppress(ConnectionResetError):
                    assert second.recv(1) == b""
                for alive in (first, third):
                    alive.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        alive.recv(1)


async def test_a_client_that_never_ends_is_dropped_after_the_read_timeout() -> None:
    async with serving(read_timeout=0.2) as served:
        with clients(1, served.address, PAYLOAD[:50]):
            await until(lambda: served.listener.connections == 1)
            await until(lambda: served.listener.connections == 0, seconds=2)


async def test_a_sender_of_too_much_is_cut_off() -> None:
    async with serving() as served:
        with clients(1, served.address) as (client,):
            client.settimeout(5)
            with pytest.raises(OSError):  # noqa: PT012
                for _ in range(1000):
                    client.sendall(b"A" * 65_536)
                    await asyncio.sleep(0.001)
        assert await served.launch() < 1


async def test_junk_of_every_kind_holds_up_nobody() -> None:
    async with serving() as served:
        for junk in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", os.urandom(60_000), b"A" * 60_000, PAYLOAD[:-40], b"{" * 60_000):
            await served.push(junk)
        assert await served.launch() < 1


async def test_a_reset_instead_of_a_close_is_no_answer() -> None:
    async with serving() as served:
        served.launches.register(KERNEL_ID, owner=None)
        with clients(1, served.address, PAYLOAD) as (client,):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await until(lambda: served.listener.connections == 0)
        with pytest.raises(asyncio.TimeoutError):
            await served.launches.take(KERNEL_ID, timeout=0.1)


async def test_a_second_payload_for_the_same_launch_changes_nothing() -> None:
    async with serving() as served:
        served.launches.register(KERNEL_ID, owner=None)
        await served.push(PAYLOAD)
        await until(lambda: KERNEL_ID not in served.launches)
        other = version_1(connection_information(shell_port=50001), public_key=public_key_text(PRIVATE_KEY))
        await served.push(other)
        assert (await served.launches.take(KERNEL_ID, timeout=5))["shell_port"] == 40001


async def test_the_log_never_holds_a_payload_or_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as served:
        await served.push(version_1(connection_information(kernel_id="stranger"), public_key=public_key_text(PRIVATE_KEY)))
        await until(lambda: "Refused" in caplog.text)
        await served.launch()
    assert KERNEL_ID in caplog.text
    for secret in (connection_information()["key"], PAYLOAD[:40].decode(), "stranger", "40005"):
        assert secret not in caplog.text


async def test_refusals_are_counted_and_warned_of_rarely(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served:
        for _ in range(50):
            await served.push(b"junk")
        await until(lambda: served.listener.connections == 0)
    assert 1 <= caplog.text.count("Refused") <= 3


async def test_the_loop_stays_free_under_a_flood() -> None:
    """The longest time that another task waits for its turn, while 2,000 junk payloads arrive."""
    async with serving() as served:

        def flood() -> None:
            for _ in range(2000):
                with contextlib.suppress(OSError), socket.create_connection(served.address, timeout=5) as client:
                    client.sendall(b'{"version": 1}' * 50)

        flooding = asyncio.get_running_loop().run_in_executor(None, flood)
        longest = 0.0
        gc.collect()
        while not flooding.done():
            began = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - began)
        await flooding
        # The flood's own thread holds the interpreter lock for up to 5 ms at a time.
        assert longest < 0.25
        assert await served.launch() < 1


async def test_closing_twice_and_closing_unstarted_is_fine() -> None:
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    listener = PushListener(
        bound_socket=bound, private_key=PRIVATE_KEY, launches=WaitingLaunches(), log=logging.getLogger("test.push")
    )
    await listener.close()
    await listener.close()
    assert bound.fileno() == -1
