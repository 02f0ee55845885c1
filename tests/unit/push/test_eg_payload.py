"""Enterprise Gateway's payload: what is accepted, and that nothing else is."""

from __future__ import annotations

import base64
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eg_knative.wire.eg_payload import PayloadError, PrivateConnectionInfo, decode_payload, new_private_key, public_key_text
from tests.unit.push.payloads import KERNEL_ID, connection_information, version_0, version_1

PRIVATE_KEY = new_private_key()
PUBLIC_KEY = public_key_text(PRIVATE_KEY)


def decode(data: bytes, *, waiting: tuple[str, ...] = (KERNEL_ID,)) -> PrivateConnectionInfo:
    return decode_payload(data, private_key=PRIVATE_KEY, waiting=waiting)


def test_version_1_is_returned_field_by_field() -> None:
    assert decode(version_1(connection_information(), public_key=PUBLIC_KEY)) == connection_information()


def test_version_0_is_tried_with_every_waiting_kernel() -> None:
    other = "11111111-2222-3333-4444-555555555555"
    decoded = decode(version_0(connection_information(), kernel_id=KERNEL_ID), waiting=(other, KERNEL_ID))
    assert decoded == connection_information()


def test_fields_that_nobody_asked_for_do_not_pass() -> None:
    decoded = decode(version_1(connection_information(surprise="x", comm_port=..., pid=...), public_key=PUBLIC_KEY))
    assert set(decoded) == set(connection_information(comm_port=..., pid=...))


def test_numbers_may_come_as_strings() -> None:
    decoded = decode(version_1(connection_information(shell_port="40001", pid="77"), public_key=PUBLIC_KEY))
    assert (decoded["shell_port"], decoded["pid"]) == (40001, 77)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kernel_id": "another"}, "kernel_id"),
        ({"kernel_id": ...}, "kernel_id"),
        ({"kernel_id": ["x"]}, "kernel_id"),
        ({"shell_port": 0}, "shell_port"),
        ({"shell_port": 65536}, "shell_port"),
        ({"hb_port": True}, "hb_port"),
        ({"hb_port": 40005.0}, "hb_port"),
        ({"iopub_port": ...}, "iopub_port"),
        ({"iopub_port": "٤"}, "iopub_port"),
        ({"iopub_port": 40001}, "shell_port"),
        ({"comm_port": -1}, "comm_port"),
        ({"pid": 0}, "pid"),
        ({"pid": -1}, "pid"),
        ({"pgid": 0}, "pgid"),
        ({"pgid": -5}, "pgid"),
        ({"ip": "1.2.3.4; rm"}, "ip"),
        ({"ip": ""}, "ip"),
        ({"ip": "a" * 300}, "ip"),
        ({"ip": 7}, "ip"),
        ({"key": ""}, "key"),
        ({"key": None}, "key"),
        ({"transport": "ipc"}, "transport"),
        ({"signature_scheme": "hmac-md5"}, "signature_scheme"),
        ({"kernel_name": 3}, "kernel_name"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, object], field: str) -> None:
    with pytest.raises(PayloadError) as caught:
        decode(version_1(connection_information(**changes), public_key=PUBLIC_KEY))
    assert caught.value.field == field
    assert connection_information()["key"] not in caught.value.message


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::1", "node-7.example.org", "0.0.0.0"])
def test_addresses_and_host_names_pass(address: str) -> None:
    assert decode(version_1(connection_information(ip=address), public_key=PUBLIC_KEY))["ip"] == address


def test_a_payload_for_another_gateways_key_is_refused() -> None:
    other = public_key_text(new_private_key())
    with pytest.raises(PayloadError, match="not encrypted with this gateway's public key"):
        decode(version_1(connection_information(), public_key=other))


@pytest.mark.parametrize("version", [2, "1", None, True and [1]])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(PayloadError, match="version"):
        decode(version_1(connection_information(), public_key=PUBLIC_KEY, version=version))


def test_an_answer_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(PayloadError):
        decode(version_1(["not", "an", "object"], public_key=PUBLIC_KEY))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_junk_gives_one_kind_of_error(junk: bytes) -> None:
    for data in (junk, base64.b64encode(junk)):
        with pytest.raises(PayloadError):
            decode(data)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"version": st.just(1), "key": st.binary(max_size=140), "conn_info": st.binary(max_size=200)},
        optional={"more": st.text(max_size=5)},
    )
)
def test_junk_in_the_right_envelope_gives_the_same_error(envelope: dict[str, object]) -> None:
    encoded = {name: base64.b64encode(v).decode() if isinstance(v, bytes) else v for name, v in envelope.items()}
    with pytest.raises(PayloadError):
        decode(base64.b64encode(json.dumps(encoded).encode()))


def test_deeply_nested_json_is_only_junk() -> None:
    with pytest.raises(PayloadError):
        decode(base64.b64encode(b"[" * 40_000))


def test_a_bit_flipped_anywhere_is_never_mistaken_for_the_kernels_answer() -> None:
    good = base64.b64decode(version_1(connection_information(), public_key=PUBLIC_KEY))
    envelope = json.loads(good)
    for name in ("key", "conn_info"):
        raw = bytearray(base64.b64decode(envelope[name]))
        raw[0] ^= 1
        changed = {**envelope, name: base64.b64encode(bytes(raw)).decode()}
        with pytest.raises(PayloadError):
            decode(base64.b64encode(json.dumps(changed).encode()))


def test_the_key_is_never_shown() -> None:
    decoded = decode(version_1(connection_information(), public_key=PUBLIC_KEY))
    shown = f"{decoded} {decoded!r} {decoded!s:>10}" + "%s %r" % (decoded, decoded) + "{}".format(decoded)  # noqa: UP031, UP032
    assert connection_information()["key"] not in shown
    assert "40001" in shown
    assert decoded["key"] == connection_information()["key"]


def test_random_bytes_of_a_payloads_size_are_refused_for_many_waiting_kernels() -> None:
    waiting = tuple(f"{number:036d}" for number in range(200))
    with pytest.raises(PayloadError):
        decode(base64.b64encode(os.urandom(1024)), waiting=waiting)
