from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from eg_knative.errors import LauncherUnreachableError
from eg_knative.wire import hold as hold_module
from eg_knative.wire.control import Beat, LauncherClient
from eg_knative.wire.hold import Hold
from tests.unit.wire import documents
from tests.unit.wire.servers import FakeLauncher, Script, fake_launcher, saying

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\n\r\n"


def line(**changes: Any) -> bytes:
    return json.dumps(documents.BEAT | changes).encode() + b"\n"


def beating(*lines: bytes, until: asyncio.Event, pause: float = 0.01) -> Script:
    async def script(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for each in lines:
            writer.write(each)
            await writer.drain()
            await asyncio.sleep(pause)
        await until.wait()

    return script


class Listener:
    def __init__(self) -> None:
        self.beats: list[Beat] = []
        self.lost: list[str] = []

    def hold(self, fake: FakeLauncher, interval: float = 0.1) -> Hold:
        client = LauncherClient(address=fake.address, token="t")
        return Hold(client=client, interval=interval, on_beat=self.beats.append, on_lost=self.lost.append)


@pytest.fixture
def end() -> asyncio.Event:
    return asyncio.Event()


async def test_beats_arrive_in_order_and_the_latest_is_kept(tmp_path: Path, end: asyncio.Event) -> None:
    listener = Listener()
    async with fake_launcher(tmp_path, beating(line(sequence=1), line(sequence=2), b"\n", line(sequence=3), until=end)) as fake:
        hold = listener.hold(fake)
        assert not hold.connected
        hold.start()
        await hold.wait_beat(lambda beat: beat.sequence == 3, timeout=5)
        assert hold.connected
        assert [beat.sequence for beat in listener.beats] == [1, 2, 3]
        assert hold.latest == listener.beats[-1]
        await hold.close()
        end.set()
    assert not hold.connected
    assert listener.lost == []
    assert fake.requests[0].startswith(b"GET /v1/beats?interval=0.1 HTTP/1.1\r\n")


async def test_a_stream_that_ends_is_opened_again_and_a_new_boot_is_seen(tmp_path: Path) -> None:
    listener = Listener()
    async with fake_launcher(tmp_path, saying(HEAD, line(boot_id="one"))) as fake:
        hold = listener.hold(fake)
        hold.start()
        await hold.wait_beat(lambda beat: beat.boot_id == "one", timeout=5)
        fake.script = saying(HEAD, line(boot_id="two"), pause=0.2)
        await hold.wait_beat(lambda beat: beat.boot_id == "two", timeout=5)
        await hold.close()
    assert len(listener.lost) >= 1


async def test_silence_of_three_intervals_is_a_loss(tmp_path: Path, end: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold_module, "SHORTEST_SILENCE_SECONDS", 0.0)
    listener = Listener()
    async with fake_launcher(tmp_path, beating(line(), until=end)) as fake:
        hold = listener.hold(fake, interval=0.1)
        hold.start()
        await hold.wait_beat(lambda _: True, timeout=5)
        started = time.monotonic()
        while hold.connected:
            await asyncio.sleep(0.005)
        assert 0.2 < time.monotonic() - started < 1.5
        assert listener.lost == ["The launcher did not answer within 0.3 s."]
        await hold.close()
        end.set()


async def test_one_outage_is_told_once_and_tried_with_growing_pauses(tmp_path: Path) -> None:
    listener = Listener()
    tries: list[float] = []

    async def refusing(_: bytes, writer: asyncio.StreamWriter) -> None:
        tries.append(time.monotonic())
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}")

    async with fake_launcher(tmp_path, refusing) as fake:
        hold = listener.hold(fake)
        hold.start()
        while len(tries) < 4:
            await asyncio.sleep(0.01)
        assert len(listener.lost) == 1
        pauses = [later - earlier for earlier, later in itertools.pairwise(tries)]
        assert pauses[0] >= 0.07
        assert pauses[2] > 1.5 * pauses[0]
        fake.script = saying(HEAD, line(), pause=0.2)
        await hold.wait_beat(lambda _: True, timeout=5)
        fake.script = refusing
        while len(listener.lost) < 2:
            await asyncio.sleep(0.01)
        await hold.close()
    assert listener.beats[0].name == "m"


async def test_nonsense_in_the_stream_ends_it_but_not_the_hold(tmp_path: Path, end: asyncio.Event) -> None:
    listener = Listener()
    async with fake_launcher(tmp_path, beating(line(), b"{nonsense\n", until=end)) as fake:
        hold = listener.hold(fake)
        hold.start()
        while not listener.lost:
            await asyncio.sleep(0.01)
        fake.script = beating(line(sequence=99), until=end)
        await hold.wait_beat(lambda beat: beat.sequence == 99, timeout=5)
        await hold.close()
        end.set()


async def test_waiting_ends_with_its_time_limit_and_with_the_hold(tmp_path: Path, end: asyncio.Event) -> None:
    listener = Listener()
    async with fake_launcher(tmp_path, beating(line(), until=end)) as fake:
        hold = listener.hold(fake)
        with pytest.raises(LauncherUnreachableError, match="not open"):
            await hold.wait_beat(lambda _: True, timeout=1)
        hold.start()
        with pytest.raises(LauncherUnreachableError, match=r"within 0.05 s"):
            await hold.wait_beat(lambda beat: beat.state == "never", timeout=0.05)
        waiting = asyncio.create_task(hold.wait_beat(lambda beat: beat.state == "never", timeout=60))
        await asyncio.sleep(0.01)
        await hold.close()
        await hold.close()
        with pytest.raises(LauncherUnreachableError, match="closed"):
            await waiting
        end.set()


async def test_a_reader_that_fails_harms_nobody_else(
    tmp_path: Path, end: asyncio.Event, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_: object) -> None:
        raise RuntimeError("a defect of the reader")

    async with fake_launcher(tmp_path, saying(HEAD, line(sequence=1))) as fake:
        hold = Hold(client=LauncherClient(address=fake.address, token="t"), interval=0.1, on_beat=failing, on_lost=failing)
        hold.start()
        await hold.wait_beat(lambda _: True, timeout=5)
        fake.script = beating(line(sequence=2), until=end)
        await hold.wait_beat(lambda beat: beat.sequence == 2, timeout=5)
        await hold.close()
        end.set()
    assert "a defect of the reader" in caplog.text
