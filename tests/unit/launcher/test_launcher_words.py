"""Pure parts of the launcher: tokens, promotions, argv, frames, statuses, ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
from typing import Any

import pytest

from eg_launcher import framing
from eg_launcher.errors import FramingError, RequestError
from eg_launcher.exits import describe_exit
from eg_launcher.messages import request, status_of
from eg_launcher.ports import PortReservation
from eg_launcher.protocol import hash_token, number, parse_body, parse_promotion, token_matches
from eg_launcher.zygote_client import interpreter_of

GOOD = {"claim_id": "c", "kernel_id": "k", "env": {"A": "1"}, "attributes": {"x": 1}}


@pytest.mark.parametrize(
    ("authorization", "matches"),
    [
        ("Bearer t", True),
        ("bearer t", True),
        ("Bearer  t ", True),
        ("Bearer x", False),
        ("t", False),
        (None, False),
        ("Basic t", False),
    ],
)
def test_a_token(authorization: str | None, matches: bool) -> None:
    assert token_matches(authorization=authorization, token_sha256=hash_token("t")) is matches


def test_a_claim_tells_all_but_the_environment() -> None:
    claim = parse_promotion(GOOD).as_claim(claimed_at=5.0)
    assert claim["attributes"] == {"x": 1}
    assert "env" not in claim
    assert "'1'" not in repr(parse_promotion(GOOD))


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"claim_id": ""}, 400, "claim_id"),
        ({"claim_id": "x" * 257}, 400, "claim_id"),
        ({"kernel_id": "a/b"}, 422, "kernel_id"),
        ({"kernel_id": "."}, 422, "kernel_id"),
        ({"kernel_id": "x" * 129}, 422, "kernel_id"),
        ({"username": 7}, 400, "username"),
        ({"username": "a\0"}, 400, "username"),
        ({"working_directory": 7}, 400, "working_directory"),
        ({"attributes": []}, 400, "attributes"),
        ({"env": {"A": None}}, 422, "env"),
        ({"other": 1}, 400, "other"),
    ],
)
def test_a_bad_promotion_names_the_field(change: dict[str, Any], status: int, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_promotion({**GOOD, **change})
    assert (caught.value.status, caught.value.field) == (status, field)


def test_an_empty_body_is_an_empty_object() -> None:
    assert parse_body(b" ") == {}
    for body in (b"[]", b"{", b"\xff", b"[" * 50_000):
        with pytest.raises(RequestError):
            parse_body(body)


@pytest.mark.parametrize("value", [True, "1", None, float("nan"), -1, 11])
def test_a_number_within_limits(value: Any) -> None:
    assert number({}, "n", default=3, least=0, most=10) == 3
    with pytest.raises(RequestError):
        number({"n": value}, "n", default=3, least=0, most=10)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["p", "-m", "ipykernel_launcher", "-f", "F"], (["p"], ["-f", "F"])),
        (["p", "-Xfrozen_modules=off", "-m", "ipykernel", "-f", "F"], (["p", "-Xfrozen_modules=off"], ["-f", "F"])),
        (["p", "-X", "dev", "-W", "error", "-m", "ipykernel"], (["p", "-X", "dev", "-W", "error"], [])),
        (("p", "-I", "-m", "ipykernel_launcher"), (["p", "-I"], [])),
        (["p", "-m", "xeus"], None),
        (["p", "-c", "-m", "ipykernel"], None),
        (["deno", "jupyter", "-m", "ipykernel"], None),
        (["p", "-m"], None),
        (["p"], None),
    ],
)
def test_recognising_ipykernel(argv: list[str], parts: Any) -> None:
    assert interpreter_of(argv) == parts


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


async def test_frames_cross_with_descriptors() -> None:
    ours, theirs = _pair()
    channel = framing.Channel(ours)
    read_end, write_end = os.pipe()
    large = {"op": "x", "text": "y" * 500_000}
    receiving = asyncio.create_task(asyncio.to_thread(framing.receive, theirs))
    await channel.send(large, [write_end])
    message, descriptors = await receiving
    assert message == large
    assert not os.get_inheritable(descriptors[0])
    os.write(descriptors[0], b"!")
    assert os.read(read_end, 1) == b"!"
    for descriptor in (read_end, write_end, *descriptors):
        os.close(descriptor)
    framing.send(theirs, {"op": "back"})
    assert await channel.receive() == {"op": "back"}
    theirs.close()
    assert await channel.receive() is None
    channel.close()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", 70_000) + b"x",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 1) + b"{",
        struct.pack(">I", 9) + b"{}",
        b"\0",
    ],
)
async def test_frames_from_a_kernel_are_not_trusted(data: bytes) -> None:
    ours, theirs = _pair()
    channel = framing.Channel(ours, limit=framing.LARGEST_FROM_KERNEL)
    theirs.sendall(data)
    theirs.close()
    with pytest.raises(FramingError):
        await channel.receive()
    channel.close()


def test_statuses_are_picked_out() -> None:
    def frames(kind: str, content: Any) -> list[bytes]:
        signed = request(kind=kind, content=content, key="k")
        return [b"kernel.x.status", *signed]

    assert status_of(frames("status", {"execution_state": "busy"})) == "busy"
    assert status_of(frames("status", {"execution_state": "odd"})) is None
    assert status_of(frames("stream", {"text": '"status"'})) is None
    assert status_of([]) is None
    assert status_of([b"<IDS|MSG>"]) is None
    assert status_of([b"<IDS|MSG>", b"", b'{"msg_type": "status"', b"", b"", b"{}"]) is None
    assert status_of([b"<IDS|MSG>", b"", b'["status"]', b"", b"", b"[]"]) is None


def test_requests_are_signed_with_the_key() -> None:
    one = request(kind="shutdown_request", content={"restart": True}, key="k")
    assert json.loads(one[2])["msg_type"] == "shutdown_request"
    assert len(one[1]) == 64


@pytest.mark.parametrize(
    ("status", "memory", "reason", "words"),
    [
        (3 << 8, False, "exited", "exit code 3"),
        (3 << 8, True, "exited", "exit code 3"),
        (signal.SIGSEGV, False, "signalled", "SIGSEGV"),
        (signal.SIGKILL, False, "signalled", "SIGKILL"),
        (signal.SIGKILL, True, "out_of_memory", "memory"),
        (40, False, "signalled", "real-time"),
    ],
)
def test_ends_in_words(status: int, memory: bool, reason: str, words: str) -> None:
    ended = describe_exit(status=status, tail="the last line", memory_killed=memory)
    assert ended["reason"] == reason
    assert words in ended["message"]
    assert ended["message"].endswith("the last line")


def test_a_reserved_port_can_be_listened_on_with_reuse_only() -> None:
    reservation = PortReservation(ip="127.0.0.1", wanted=(0, 0, 0, 0, 0))
    assert len(set(reservation.ports)) == 5
    for _ in range(3):  # as often as a kernel is restarted
        with socket.socket() as kernel:
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            kernel.bind(("127.0.0.1", reservation.ports[0]))
            kernel.listen()
            socket.create_connection(("127.0.0.1", reservation.ports[0]), timeout=1).close()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", reservation.ports[0]))
    reservation.release()
    reservation.release()
