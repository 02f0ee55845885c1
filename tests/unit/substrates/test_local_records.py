from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from eg_knative.substrates.contract import Member
from eg_knative.substrates.local_processes import ProcessIdentity
from eg_knative.substrates.local_records import MemberRecord, read_record, read_sessions, write_record

RECORD = MemberRecord(
    name="m",
    kernelspec="python",
    specification_digest="0123456789abcdef",
    address="unix:/run/s/1",
    created_at=12.5,
    launcher=ProcessIdentity(pid=7, started_ticks=99, machine_boot="boot"),
    started_by="exec",
    notice="Not forked.",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    path.mkdir()
    return path


@pytest.mark.parametrize("record", [RECORD, dataclasses.replace(RECORD, launcher=None, started_by="", notice=None)])
def test_what_is_written_is_read(directory: Path, record: MemberRecord) -> None:
    write_record(directory, record)
    assert read_record(directory) == record


def test_a_record_as_the_contract_sees_it(directory: Path) -> None:
    assert RECORD.as_member(directory=directory, token="t") == Member(
        name="m",
        substrate="local",
        kernelspec="python",
        specification_digest="0123456789abcdef",
        address="unix:/run/s/1",
        token="t",
        created_at=12.5,
        where={"pid": "7", "directory": str(directory)},
        started_by="exec",
        notice="Not forked.",
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"name": "another"},
        {"name": 5},
        {"address": "tcp:1.2.3.4:5"},
        {"created_at": "soon"},
        {"launcher": {"pid": "x"}},
        {"launcher": [1]},
    ],
)
def test_a_record_that_cannot_be_trusted_is_none(directory: Path, changes: dict[str, Any]) -> None:
    write_record(directory, RECORD)
    document = json.loads((directory / "member.json").read_text())
    (directory / "member.json").write_text(json.dumps(document | changes))
    assert read_record(directory) is None


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 50_000])
def test_a_spoilt_record_is_none(directory: Path, content: bytes) -> None:
    (directory / "member.json").write_bytes(content)
    assert read_record(directory) is None


def test_no_record_is_none(directory: Path) -> None:
    assert read_record(directory) is None


def test_sessions(directory: Path) -> None:
    assert read_sessions(directory, machine_boot="b") == []
    (directory / "connection").mkdir()
    (directory / "connection" / "sessions").write_text("12 345\n13 346\n")
    assert read_sessions(directory, machine_boot="b") == [
        ProcessIdentity(pid=12, started_ticks=345, machine_boot="b"),
        ProcessIdentity(pid=13, started_ticks=346, machine_boot="b"),
    ]
    (directory / "connection" / "sessions").write_text("nonsense\n")
    assert read_sessions(directory, machine_boot="b") == []
