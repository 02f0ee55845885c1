"""Our framing against jupyter_server's own serializers, and against what a hostile client might send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_server.base.zmqhandlers import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

from eg_knative.errors import ChannelError
from eg_knative.gateway.websocket import decode_legacy, decode_v1, encode_legacy, encode_v1
from eg_knative.wire.jupyter_messages import Message, pack

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(text, values, max_size=4)
headers = st.builds(lambda extra, kind: extra | {"msg_id": "id", "msg_type": kind, "session": "s"}, objects, text)
buffers = st.lists(st.binary(max_size=50), max_size=4)
sent_on = st.sampled_from(["shell", "control", "stdin"])


def dump(value: Any, style: int) -> bytes:
    """The same value in the spellings that clients and kernels use: none is ours to change."""
    if style == 0:
        return pack(value)
    if style == 1:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode()


@st.composite
def messages(draw: st.DrawFn) -> Message:
    style = draw(st.integers(0, 2))
    json_parts = [dump(draw(headers), style), *(dump(draw(objects), style) for _ in range(3))]
    return Message((*json_parts, *draw(buffers)))


@given(messages(), st.sampled_from(["shell", "iopub", "control", "stdin"]))
def test_a_legacy_frame_says_what_jupyter_servers_would(message: Message, channel: str) -> None:
    frame, binary = encode_legacy(channel, message)
    assert binary == bool(message.parts[4:])
    got = deserialize_binary_message(frame) if binary else json.loads(frame)
    fields = [json.loads(part) for part in message.parts[:4]]
    expected = dict(zip(("header", "parent_header", "metadata", "content"), fields, strict=True))
    expected |= {"msg_id": message.identifier, "msg_type": message.kind, "channel": channel, "buffers": list(message.parts[4:])}
    assert {key: got[key] for key in expected} == expected
    for part in message.parts[:4]:
        assert part in frame, "spliced as it came"


@given(messages(), st.sampled_from(["shell", "iopub", "control", "stdin"]))
def test_a_v1_frame_is_byte_for_byte_jupyter_servers(message: Message, channel: str) -> None:
    assert encode_v1(channel, message) == serialize_msg_to_ws_v1(list(message.parts), channel)
    got_channel, parts = deserialize_msg_from_ws_v1(encode_v1(channel, message))
    assert (got_channel, parts) == (channel, list(message.parts))


@given(
    messages(),
    sent_on,
    st.permutations(["header", "parent_header", "metadata", "content", "channel", "extra"]),
    st.integers(0, 2),
)
def test_a_clients_json_reaches_the_kernel_as_it_was_written(
    message: Message, channel: str, order: list[str], blanks: int
) -> None:
    written = dict(zip(("header", "parent_header", "metadata", "content"), (p.decode() for p in message.parts[:4]), strict=True))
    written |= {"channel": json.dumps(channel), "extra": '[1, {"header": 2}]'}
    blank = " \n"[:blanks]
    frame = "{" + ",".join(f"{blank}{json.dumps(key)}{blank}:{blank}{written[key]}{blank}" for key in order) + "}" + blank
    got_channel, got = decode_legacy(frame)
    assert got_channel == channel
    assert tuple(got.parts) == tuple(message.parts[:4])


@given(messages(), sent_on)
def test_a_legacy_round_trip_is_byte_identical(message: Message, channel: str) -> None:
    frame, binary = encode_legacy(channel, message)
    got_channel, got = decode_legacy(frame if binary else frame.decode())
    assert got_channel == channel
    assert tuple(got.parts) == tuple(message.parts)


@given(messages(), sent_on)
def test_a_v1_round_trip_is_byte_identical(message: Message, channel: str) -> None:
    got_channel, got = decode_v1(encode_v1(channel, message))
    assert got_channel == channel
    assert tuple(got.parts) == tuple(message.parts)


@given(headers, objects, st.lists(st.binary(max_size=20), min_size=1, max_size=3))
def test_a_binary_frame_of_jupyter_servers_is_read(header: dict[str, Any], content: dict[str, Any], pieces: list[bytes]) -> None:
    whole = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": pieces}
    channel, got = decode_legacy(serialize_binary_message(whole))
    assert channel == "shell"
    assert [json.loads(part) for part in got.parts[:4]] == [header, {}, {}, content]
    assert list(got.parts[4:]) == pieces


def refused_or_read(decode: Callable[[Any], tuple[str, Message]], frame: str | bytes) -> str | None:
    """The words of the refusal; None when it was read, and then as something that a client may send."""
    try:
        channel, message = decode(frame)
    except ChannelError as error:
        return error.message
    assert channel in ("shell", "control", "stdin")
    assert message.kind == message.header["msg_type"]
    return None


@given(st.text(min_size=12, max_size=200) | st.binary(max_size=200))
def test_whatever_a_client_sends_is_refused_or_read(frame: str | bytes) -> None:
    for decode in (decode_legacy, decode_v1):
        refusal = refused_or_read(decode, frame)
        assert refusal is None or str(frame) not in refusal, "what a client sent is nobody's to repeat"


@given(messages(), st.data())
def test_a_damaged_frame_is_refused_or_read(message: Message, data: st.DataObject) -> None:
    for encode, decode in (
        (lambda: encode_v1("shell", message), decode_v1),
        (lambda: encode_legacy("shell", message)[0], decode_legacy),
    ):
        frame = bytearray(encode())
        for _ in range(data.draw(st.integers(1, 3))):
            frame[data.draw(st.integers(0, min(len(frame) - 1, 80)))] = data.draw(st.integers(0, 255))
        refused_or_read(decode, bytes(frame[: data.draw(st.integers(0, len(frame)))]))


@pytest.mark.parametrize(
    "parts",
    [
        (b'{"msg_id": "a", "msg_type": "stream"}', b"{}", b"{}", b'{"text": "\xff"}'),
        (b'{"msg_id": "a"}', b"{}", b"{}", b"{}"),
        (b"[]", b"{}", b"{}", b"{}"),
    ],
)
def test_a_kernels_message_that_cannot_be_a_text_frame_is_refused(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(ChannelError):
        encode_legacy("iopub", Message(parts))
