"""The two framings of Jupyter messages on a WebSocket, to and from the byte parts of `wire.jupyter_messages`.

It exists so that a frame is spliced together from the parts as they came: nothing is dumped again, in either direction.
Everything that a client sends is input: what cannot be read raises ChannelError, whatever it is. It does not promise that a
kernel's content is JSON; text that is not UTF-8 is refused, because a browser would close the connection over it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from itertools import pairwise

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message

V1 = "v1.kernel.websocket.jupyter.org"
_FIELDS = ("header", "parent_header", "metadata", "content")
_DECODER = json.JSONDecoder()
_BLANK = " \t\n\r"
_MAXIMUM_PARTS = 4_096


def encode_legacy(channel: str, message: Message) -> tuple[bytes, bool]:
    """One frame of the JSON subprotocol (the one without a name), and whether it is binary: only messages with buffers are.

    Raises ChannelError when a part is not UTF-8 or the header cannot be read.
    """
    header, parent, metadata, content = message.parts[:4]
    for part in message.parts[:4]:
        if not part.isascii():
            _require_text(part)
    pieces = [
        b'{"header": ', header, b', "msg_id": ', json.dumps(message.identifier).encode(),
        b', "msg_type": ', json.dumps(message.kind).encode(), b', "parent_header": ', parent,
        b', "metadata": ', metadata, b', "content": ', content,
    ]  # fmt: skip
    buffers = message.parts[4:]
    if not buffers:
        pieces += (b', "buffers": [], "channel": "', channel.encode(), b'"}')
        return b"".join(pieces), False
    pieces += (b', "channel": "', channel.encode(), b'"}')
    offset = 4 * (len(buffers) + 2)
    offsets = [len(buffers) + 1]
    for length in (sum(map(len, pieces)), *map(len, buffers)):
        offsets.append(offset)
        offset += length
    if offset > 0xFFFFFFFF:
        raise ChannelError("A message with buffers is larger than 4 GiB, which the JSON subprotocol cannot carry.")
    return b"".join((struct.pack(f"!{len(offsets)}I", *offsets), *pieces, *buffers)), True


def encode_v1(channel: str, message: Message) -> bytes:
    """One binary frame of `v1.kernel.websocket.jupyter.org`."""
    name = channel.encode()
    parts = message.parts
    offset = 8 * (len(parts) + 3)
    offsets = [len(parts) + 2, offset]
    for length in (len(name), *map(len, parts)):
        offset += length
        offsets.append(offset)
    return b"".join((struct.pack(f"<{len(offsets)}Q", *offsets), name, *parts))


def decode_legacy(frame: str | bytes) -> tuple[str, Message]:
    """The channel and the message of a client's frame, its four JSON parts as the client wrote them. Raises ChannelError.

    A frame without a channel is for shell, as in jupyter_server. Missing parent header, metadata and content are empty.
    """
    if isinstance(frame, str):
        text, buffers = frame, []
    else:
        first, *buffers = _split_binary(frame)
        text = _require_text(first)
    fields = _top_level(text)
    if "header" not in fields:
        raise ChannelError("A message has no header.", field="header")
    parts = []
    for field in _FIELDS:
        value = fields.get(field, "{}")
        if not value.startswith("{"):
            raise ChannelError(f"A message's {field} is not a JSON object.", field=field)
        parts.append(value.encode("utf-8", "surrogatepass"))
    channel = fields.get("channel", '"shell"')
    if channel == "null":
        channel = '"shell"'
    message = Message((*parts, *buffers))
    _ = message.header  # refuse it here
    try:
        name = json.loads(channel)
    except ValueError as error:
        raise ChannelError("A message's channel is not a string.", field="channel") from error
    return _channel(name), message


def decode_v1(frame: str | bytes) -> tuple[str, Message]:
    """The channel and the message of a client's frame. Raises ChannelError."""
    if isinstance(frame, str) or len(frame) < 8:
        raise ChannelError("A frame is not binary, or is too short for its offsets.")
    (count,) = struct.unpack_from("<Q", frame)
    if not 6 <= count <= _MAXIMUM_PARTS or 8 * (count + 1) > len(frame):
        raise ChannelError(f"A frame's number of offsets ({count}) cannot be right.")
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    if offsets[0] < 8 * (count + 1) or offsets[-1] > len(frame) or any(a > b for a, b in pairwise(offsets)):
        raise ChannelError("A frame's offsets are not in order, or point outside of it.")
    pieces = [frame[start:end] for start, end in pairwise(offsets)]
    message = Message(pieces[1:])
    _ = message.header
    return _channel(pieces[0].decode("ascii", "replace")), message


def _channel(name: object) -> str:
    if name not in ("shell", "control", "stdin"):
        raise ChannelError("A message is for no channel that a client can send on.", field="channel")
    return str(name)


def _require_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ChannelError("A message's JSON is not UTF-8.") from error


def _split_binary(frame: bytes) -> Sequence[bytes]:
    if len(frame) < 4:
        raise ChannelError("A binary frame is too short.")
    (count,) = struct.unpack_from("!I", frame)
    if not 1 <= count <= _MAXIMUM_PARTS or 4 * (count + 1) > len(frame):
        raise ChannelError(f"A binary frame's number of parts ({count}) cannot be right.")
    offsets = (*struct.unpack_from(f"!{count}I", frame, 4), len(frame))
    if offsets[0] < 4 * (count + 1) or any(a > b for a, b in pairwise(offsets)):
        raise ChannelError("A binary frame's offsets are not in order, or point outside of it.")
    return [frame[start:end] for start, end in pairwise(offsets)]


def _top_level(text: str) -> dict[str, str]:
    """The values of a JSON object as the text they are written in. Parsed (in C) to find their ends, never dumped again."""
    fields: dict[str, str] = {}
    try:
        at = _skip(text, 0)
        if text[at] != "{":
            raise ChannelError("A frame is not a JSON object.")
        at = _skip(text, at + 1)
        if text[at] == "}":
            return fields
        while True:
            key, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if not isinstance(key, str) or text[at] != ":":
                raise ChannelError("A frame is not JSON.")
            start = _skip(text, at + 1)
            _, at = _DECODER.raw_decode(text, start)
            fields[key] = text[start:at]
            at = _skip(text, at)
            if text[at] == "}":
                break
            if text[at] != ",":
                raise ChannelError("A frame is not JSON.")
            at = _skip(text, at + 1)
    except (ValueError, IndexError, RecursionError) as error:
        raise ChannelError("A frame is not JSON.") from error
    if text[at + 1 :].strip(_BLANK):
        raise ChannelError("A frame has more than one JSON value.")
    return fields


def _skip(text: str, at: int) -> int:
    while text[at] in _BLANK:
        at += 1
    return at
