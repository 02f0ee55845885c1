"""Jupyter messages as the bytes they came in: splitting, signing, checking, and composing the few that we send ourselves.

It exists so that a message crosses the gateway without being parsed and dumped again: the four JSON parts stay the kernel's or
the client's own bytes, and only the header is read. It does not promise that metadata or content are JSON at all, it speaks
message protocol 5 only (no adaptation of kernels of protocol 4), and a signature protects from forgery, not from replay.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from eg_knative.errors import ChannelError

DELIMITER = b"<IDS|MSG>"
CHANNELS = ("shell", "control", "stdin", "iopub")
PROTOCOL_VERSION = "5.3"
_JSON_PARTS = 4


class Message:
    """header, parent header, metadata, content (JSON bytes), then buffers. The two headers are parsed at first use.

    `expected`: it answers, or belongs to, a request that went to the kernel through the same channels.
    """

    __slots__ = ("_header", "_parent", "expected", "parts")

    def __init__(self, parts: Sequence[bytes]) -> None:
        """Raises ChannelError when there are fewer than four parts."""
        if len(parts) < _JSON_PARTS:
            raise ChannelError(f"A message has {len(parts)} parts; header, parent header, metadata and content are four.")
        self.parts = parts
        self.expected = False
        self._header: Mapping[str, Any] | None = None
        self._parent: Mapping[str, Any] | None = None

    @property
    def header(self) -> Mapping[str, Any]:
        """The parsed header, with `msg_id` and `msg_type` as strings. Raises ChannelError when it is not such a thing."""
        if self._header is None:
            header = parse_object(self.parts[0], "header")
            if not isinstance(header.get("msg_id"), str) or not isinstance(header.get("msg_type"), str):
                raise ChannelError("A message's header has no msg_id or no msg_type.", field="header")
            self._header = header
        return self._header

    @property
    def parent(self) -> Mapping[str, Any]:
        """The parsed parent header; empty when it names no parent or cannot be read."""
        if self._parent is None:
            try:
                self._parent = parse_object(self.parts[1], "parent_header")
            except ChannelError:
                self._parent = {}
        return self._parent

    @property
    def kind(self) -> str:
        """`msg_type`. Raises ChannelError as `header` does."""
        return str(self.header["msg_type"])

    @property
    def identifier(self) -> str:
        """`msg_id`. Raises ChannelError as `header` does."""
        return str(self.header["msg_id"])

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts))

    def content(self) -> Mapping[str, Any]:
        """The parsed content, not kept. Raises ChannelError when it is not a JSON object."""
        return parse_object(self.parts[3], "content")


def parse_object(data: bytes, field: str) -> Mapping[str, Any]:
    """A JSON object from bytes. Raises ChannelError that names `field` and never shows the bytes."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"A message's {field} is not JSON.", field=field) from error
    if not isinstance(value, dict):
        raise ChannelError(f"A message's {field} is not a JSON object.", field=field)
    return value


def pack(value: Any) -> bytes:
    """JSON as Jupyter packs it: UTF-8, not escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def compose(
    kind: str,
    content: Mapping[str, Any],
    *,
    parent: bytes = b"{}",
    session: str,
    username: str = "",
    identifier: str | None = None,
) -> Message:
    """A new message. `parent` is the parent's header as it came."""
    header = {
        "msg_id": identifier or uuid.uuid4().hex,
        "msg_type": kind,
        "username": "",
        "session": session,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat().replace("+00:00", "Z"),
        "version": PROTOCOL_VERSION,
    }
    return Message((pack(header), parent, b"{}", pack(content)))


class Signer:
    """Signs and checks with one key. An empty key means that nothing is signed or checked, as Jupyter has it."""

    __slots__ = ("_keyed",)

    def __init__(self, *, key: str, scheme: str) -> None:
        """`scheme` is `hmac-` and the name of a hash. Raises ChannelError for one that Python does not know."""
        kind, _, name = scheme.partition("-")
        if kind != "hmac" or name not in hashlib.algorithms_available:
            raise ChannelError(
                f"The kernel's signature scheme {scheme!r} is not known. Use hmac-sha256.", field="signature_scheme"
            )
        self._keyed = hmac.new(key.encode(), digestmod=name) if key else None

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature over the four JSON parts (buffers are not covered by it), hexadecimal."""
        if self._keyed is None:
            return b""
        digest = self._keyed.copy()  # the key is hashed once, not for every message
        for part in parts[:_JSON_PARTS]:
            digest.update(part)
        return digest.hexdigest().encode()

    def accepts(self, signature: bytes, parts: Sequence[bytes]) -> bool:
        """Compared in constant time."""
        return self._keyed is None or hmac.compare_digest(signature, self.sign(parts))

    def frames(self, parts: Sequence[bytes]) -> list[bytes]:
        """What goes to the kernel's socket."""
        return [DELIMITER, self.sign(parts), *parts]

    def open(self, frames: Sequence[bytes]) -> Message:
        """Check what came from a kernel's socket. Raises ChannelError when it is malformed or not signed with this key."""
        try:
            start = frames.index(DELIMITER) + 1
        except ValueError:
            raise ChannelError("A message has no delimiter.", reason="malformed") from None
        parts = frames[start + 1 :]
        if len(parts) < _JSON_PARTS:
            raise ChannelError("A message is too short.", reason="malformed")
        if not self.accepts(frames[start], parts):
            raise ChannelError("A message's signature is wrong.", reason="bad_signature")
        return Message(parts)
