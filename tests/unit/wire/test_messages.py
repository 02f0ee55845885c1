from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_knative.errors import LauncherError
from eg_knative.wire import messages
from eg_knative.wire.fields import Fields, parse
from eg_knative.wire.messages import (
    Beat,
    ClaimRecord,
    ConnectionAnswer,
    ConnectionInfo,
    Health,
    KernelExit,
    Promotion,
    Restarted,
    Usage,
)
from tests.unit.wire import documents

READERS: dict[str, tuple[dict[str, Any], Callable[[Fields], Any]]] = {
    "health": (documents.HEALTH, messages.health),
    "connection": (documents.CONNECTION_ANSWER, lambda fields: messages.connection_answer(fields, ip=None)),
    "promotion": (documents.PROMOTION, lambda fields: messages.promotion(fields, ip="127.0.0.1", claim_id="c1")),
    "restarted": (documents.RESTARTED, lambda fields: messages.restarted(fields, ip=None)),
    "usage": (documents.USAGE, messages.usage),
    "beat": (documents.BEAT, messages.beat),
}
CONNECTION = ConnectionInfo(**documents.CONNECTION)


def read(kind: str, document: Any) -> Any:
    return READERS[kind][1](parse(json.dumps(document).encode(), where=kind))


def test_well_formed_answers_are_read_whole() -> None:
    assert read("health", documents.HEALTH) == Health(protocol=1, name="m", boot_id="b", state="ready", message=None)
    assert read("connection", documents.CONNECTION_ANSWER) == ConnectionAnswer(
        boot_id="b", kernel_generation=2, connection=CONNECTION, claim=ClaimRecord(**documents.CLAIM)
    )
    assert read("promotion", documents.PROMOTION) == Promotion(**documents.PROMOTION | {"connection": CONNECTION})
    assert read("restarted", documents.RESTARTED) == Restarted(**documents.RESTARTED | {"connection": CONNECTION})
    assert read("usage", documents.USAGE) == Usage(**documents.USAGE)
    assert read("beat", documents.BEAT) == Beat(**documents.BEAT | {"exit": KernelExit(**documents.BEAT["exit"])})


def test_unknown_fields_are_ignored() -> None:
    for kind, (document, _) in READERS.items():
        assert read(kind, {**document, "new": {"in": ["a", "later", "version"]}}) == read(kind, document)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"ip": "10.0.0.1"}, "ip"),
        ({"ip": "localhost"}, "ip"),
        ({"transport": "ipc"}, "transport"),
        ({"shell_port": 0}, "shell_port"),
        ({"hb_port": 65_536}, "hb_port"),
        ({"hb_port": "1005"}, "hb_port"),
        ({"hb_port": True}, "hb_port"),
        ({"hb_port": 1001}, "shell_port"),
        ({"key": ""}, "key"),
        ({"key": "k" * 2000}, "key"),
        ({"key": None}, "key"),
        ({"signature_scheme": "none"}, "signature_scheme"),
        ({"kernel_name": "a\0b"}, "kernel_name"),
        ({"kernel_name": "\ud800"}, "kernel_name"),
    ],
)
def test_a_connection_that_cannot_be_trusted_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(LauncherError) as refusal:
        read("connection", documents.CONNECTION_ANSWER | {"connection": documents.CONNECTION | changes})
    assert refusal.value.field == field
    assert "the-secret-key" not in str(refusal.value)


def test_a_kernel_lives_where_its_launcher_does() -> None:
    fields = Fields(documents.CONNECTION_ANSWER, where="answer")
    with pytest.raises(LauncherError, match="own address"):
        messages.connection_answer(fields, ip="10.1.2.3")
    elsewhere = documents.CONNECTION_ANSWER | {"connection": documents.CONNECTION | {"ip": "10.1.2.3"}}
    assert messages.connection_answer(Fields(elsewhere, where="answer"), ip="10.1.2.3").connection.ip == "10.1.2.3"


def test_an_answer_to_another_claim_is_refused() -> None:
    with pytest.raises(LauncherError) as refusal:
        messages.promotion(Fields(documents.PROMOTION, where="answer"), ip=None, claim_id="c2")
    assert refusal.value.field == "claim_id"


def test_text_for_people_cannot_forge_log_lines() -> None:
    health = read("health", documents.HEALTH | {"message": "all well\n2026 ERROR \x1b[31mforged" + "x" * 5000})
    assert health.message.startswith("all well 2026 ERROR  [31mforged")
    assert len(health.message) == 2000


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"protocol": 1e999}'])
def test_what_is_no_answer_is_an_error_of_ours(body: bytes) -> None:
    with pytest.raises(LauncherError):
        messages.health(parse(body, where="answer"))


def test_keys_are_in_no_representation() -> None:
    assert "the-secret-key" not in repr(read("connection", documents.CONNECTION_ANSWER))
    assert "the-secret-key" not in repr(read("promotion", documents.PROMOTION))


def refusal_of(call: Callable[[], object]) -> LauncherError | None:
    """The refusal, or None; any other exception is the test's failure."""
    try:
        call()
    except LauncherError as error:
        return error
    return None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), kind=st.sampled_from(sorted(READERS)), value=anything)
def test_a_spoilt_field_is_refused_or_read_and_nothing_else(data: st.DataObject, kind: str, value: Any) -> None:
    document = copy.deepcopy(READERS[kind][0])
    inner = document
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or not inner[key] or data.draw(st.booleans()):
            break
        inner = inner[key]
    inner[key] = value
    error = refusal_of(lambda: read(kind, document))
    assert error is None or (error.field and "the-secret-key" not in str(error))


@given(st.binary(max_size=200))
def test_bytes_are_refused_or_read_and_nothing_else(body: bytes) -> None:
    error = refusal_of(lambda: parse(body, where="answer"))
    assert error is None or error.field == "answer"
