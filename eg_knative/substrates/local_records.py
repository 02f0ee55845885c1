"""What is written down about a local member, so that the next gateway finds it or can clear it away.

A record is written before the launcher is started (so that no launcher exists without one) and again when its
process is known. A record that cannot be read describes nothing that can be adopted. It holds no token, key or
environment.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from eg_knative.substrates.contract import Member
from eg_knative.substrates.local_directory import write_private
from eg_knative.substrates.local_processes import ProcessIdentity

VERSION = 1
SESSIONS_FILE = "connection/sessions"
_FILE = "member.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberRecord:
    """One member. `launcher` is None from the intention to start it until its process is known."""

    name: str
    kernelspec: str
    specification_digest: str
    address: str
    created_at: float
    launcher: ProcessIdentity | None = None
    started_by: str = ""
    notice: str | None = None

    def as_member(self, *, directory: Path, token: str) -> Member:
        """The contract's view of it."""
        where = {"directory": str(directory)}
        if self.launcher is not None:
            where = {"pid": str(self.launcher.pid)} | where
        return Member(
            name=self.name,
            substrate="local",
            kernelspec=self.kernelspec,
            specification_digest=self.specification_digest,
            address=self.address,
            token=token,
            created_at=self.created_at,
            where=where,
            started_by=self.started_by,
            notice=self.notice,
        )


def write_record(directory: Path, record: MemberRecord) -> None:
    """Replace the record in a member's directory. Raises OSError."""
    document = {"version": VERSION, **dataclasses.asdict(record)}
    write_private(directory / _FILE, json.dumps(document, indent=1).encode())


def read_record(directory: Path) -> MemberRecord | None:
    """The record in a member's directory, or None when there is none that this version understands and that is about it."""
    try:
        document = json.loads((directory / _FILE).read_bytes())
        record = _parse(document)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if record.name == directory.name else None


def _parse(document: Any) -> MemberRecord:
    if document["version"] != VERSION:
        raise ValueError("written by another version")
    fields = {field.name: document[field.name] for field in dataclasses.fields(MemberRecord)}
    texts = ("name", "kernelspec", "specification_digest", "address", "started_by")
    if not all(isinstance(fields[name], str) for name in texts) or not fields["address"].startswith("unix:/"):
        raise TypeError("a field is not text")
    fields["created_at"] = float(fields["created_at"])
    fields["notice"] = None if fields["notice"] is None else str(fields["notice"])
    launcher = fields["launcher"]
    if launcher is not None:
        fields["launcher"] = ProcessIdentity(
            pid=int(launcher["pid"]), started_ticks=int(launcher["started_ticks"]), machine_boot=str(launcher["machine_boot"])
        )
    return MemberRecord(**fields)


def read_sessions(directory: Path, *, machine_boot: str) -> list[ProcessIdentity]:
    """The kernel processes that a member's launcher noted in `connection/sessions`: a process id and its start time a line."""
    try:
        lines = (directory / SESSIONS_FILE).read_text().splitlines()
        return [
            ProcessIdentity(pid=int(pid), started_ticks=int(ticks), machine_boot=machine_boot)
            for pid, ticks in (line.split() for line in lines)
        ]
    except (OSError, ValueError):
        return []
