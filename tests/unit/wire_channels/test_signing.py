"""Signatures against jupyter_client's Session."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.session import Session

from eg_knative.errors import ChannelError
from eg_knative.wire.jupyter_messages import Message, Signer, compose

KEY = "0123456789abcdef"


def from_session(key: str, scheme: str, kind: str, content: dict[str, Any]) -> list[bytes]:
    session = Session(key=key.encode(), signature_scheme=scheme)
    frames: list[bytes] = session.serialize(session.msg(kind, content), ident=b"someone")
    return frames


@pytest.mark.parametrize("scheme", ["hmac-sha256", "hmac-sha512", "hmac-md5"])
@given(
    content=st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3),
    buffers=st.lists(st.binary(max_size=9), max_size=2),
)
def test_what_jupyter_client_signs_is_accepted_and_the_other_way_round(
    scheme: str, content: dict[str, Any], buffers: list[bytes]
) -> None:
    signer = Signer(key=KEY, scheme=scheme)
    frames = [*from_session(KEY, scheme, "comm_msg", content), *buffers]
    message = signer.open(frames)
    assert list(message.parts[4:]) == buffers
    session = Session(key=KEY.encode(), signature_scheme=scheme)
    _, rest = session.feed_identities(signer.frames(message.parts))
    assert session.deserialize(rest)["msg_type"] == "comm_msg"


@pytest.mark.parametrize("part", range(4))
def test_a_changed_part_is_refused(part: int) -> None:
    frames = from_session(KEY, "hmac-sha256", "status", {"execution_state": "idle"})
    frames[3 + part] += b" "
    with pytest.raises(ChannelError, match="signature") as caught:
        Signer(key=KEY, scheme="hmac-sha256").open(frames)
    assert "idle" not in caught.value.message


@pytest.mark.parametrize("frames", [[], [b"<IDS|MSG>"], [b"a", b"b"], [b"<IDS|MSG>", b"", b"{}", b"{}"]])
def test_malformed_frames_are_refused(frames: list[bytes]) -> None:
    for key in (KEY, ""):
        with pytest.raises(ChannelError):
            Signer(key=key, scheme="hmac-sha256").open(frames)


def test_unsigned_and_wrongly_keyed_messages_are_refused() -> None:
    signer = Signer(key=KEY, scheme="hmac-sha256")
    for key in ("", "another"):
        with pytest.raises(ChannelError, match="signature"):
            signer.open(from_session(key, "hmac-sha256", "status", {}))


def test_an_empty_key_signs_and_checks_nothing() -> None:
    signer = Signer(key="", scheme="hmac-sha256")
    assert signer.frames((b"{}",) * 4)[1] == b""
    assert signer.open(from_session(KEY, "hmac-sha256", "status", {})).kind == "status"


@pytest.mark.parametrize("scheme", ["", "sha256", "hmac-", "hmac-nonsense", "rsa-sha256"])
def test_an_unknown_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(ChannelError, match="hmac-sha256"):
        Signer(key=KEY, scheme=scheme)


def test_a_composed_message_is_a_jupyter_message() -> None:
    parent = b'{"msg_id": "p"}'
    message = compose("stream", {"name": "stderr", "text": "ü"}, parent=parent, session="s")
    session = Session(key=b"")
    got = session.deserialize([b"", *message.parts])
    assert got["content"] == {"name": "stderr", "text": "ü"}
    assert got["parent_header"] == {"msg_id": "p"}
    assert got["header"]["date"].tzinfo is not None
    assert Message(message.parts).identifier == message.identifier
