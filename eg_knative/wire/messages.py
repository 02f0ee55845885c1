"""What launchers say, as frozen data, checked before anybody believes it.

A launcher shares its machine or pod with a user's code, so its words are input like any other: every field has a
type and a limit, ports are ports, and the kernel's address must be the launcher's own. Unknown fields are ignored,
as docs/launcher-protocol.md asks. Pure functions, no I/O. It does not promise that what a launcher says is true.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from typing import Any

from eg_knative.wire.fields import Fields

PROTOCOL = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectionInfo:
    """Where a kernel's five channels are, and the key that signs their messages."""

    ip: str
    transport: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: str = dataclasses.field(repr=False)
    signature_scheme: str
    kernel_name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimRequest:
    """The identity that a promotion gives. `working_directory` None: the member keeps its own. `attributes` come back unread."""

    claim_id: str
    kernel_id: str
    kernel_name: str
    username: str
    env: Mapping[str, str] = dataclasses.field(repr=False)
    working_directory: str | None
    attributes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """What a launcher remembers of its claim. `claimed_at`: seconds since the epoch."""

    claim_id: str
    kernel_id: str
    kernel_name: str
    username: str
    working_directory: str | None
    attributes: Mapping[str, Any]
    claimed_at: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Health:
    """That a launcher serves, and what state it is in."""

    protocol: int
    name: str
    boot_id: str
    state: str
    message: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConnectionAnswer:
    """How to reach the kernel of this moment, and whose it is."""

    boot_id: str
    kernel_generation: int
    connection: ConnectionInfo
    claim: ClaimRecord | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promotion:
    """A claim that was accepted. `phases`: seconds by the launcher's own clock."""

    boot_id: str
    claim_id: str
    kernel_generation: int
    connection: ConnectionInfo
    started: str
    notice: str | None
    phases: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restarted:
    """A restart in place that is over: the new kernel is bound."""

    kernel_generation: int
    connection: ConnectionInfo
    started_by: str | None
    phases: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What the kernel's process tree uses. None: the launcher cannot tell, or there is no limit."""

    cpu_seconds: float
    resident_bytes: int
    proportional_bytes: int | None
    processes: int
    threads: int
    memory_limit_bytes: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelExit:
    """An end of a kernel that nobody asked for."""

    generation: int
    code: int | None
    signal: int | None
    reason: str
    message: str
    restarted: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """One line of the beats stream. Seconds and bytes, as the field names say."""

    protocol: int
    name: str
    boot_id: str
    sequence: int
    state: str
    message: str | None
    kernel_state: str
    kernel_generation: int
    kernel_started_by: str | None
    notice: str | None
    idle_seconds: float
    cpu_seconds: float
    resident_bytes: int
    restarts: int
    claim_id: str | None
    kernel_id: str | None
    exit: KernelExit | None


def health(fields: Fields) -> Health:
    """The answer of /v1/health."""
    return Health(
        protocol=fields.integer("protocol"),
        name=fields.text("name", limit=63),
        boot_id=fields.text("boot_id", limit=128),
        state=fields.word("state"),
        message=fields.sentence("message"),
    )


def connection_answer(fields: Fields, *, ip: str | None) -> ConnectionAnswer:
    """The answer of /v1/connection. `ip`: the address's own; None for a Unix socket, which means this machine."""
    return ConnectionAnswer(
        boot_id=fields.text("boot_id", limit=128),
        kernel_generation=fields.integer("kernel_generation", low=1),
        connection=_connection(fields.inner("connection"), ip=ip),
        claim=fields.optional("claim", lambda key: _claim(fields.inner(key))),
    )


def promotion(fields: Fields, *, ip: str | None, claim_id: str) -> Promotion:
    """The answer of /v1/promote; it must be to this `claim_id`."""
    if fields.text("claim_id", limit=256) != claim_id:
        raise fields.wrong("claim_id", "the one that was asked for")
    return Promotion(
        boot_id=fields.text("boot_id", limit=128),
        claim_id=claim_id,
        kernel_generation=fields.integer("kernel_generation", low=1),
        connection=_connection(fields.inner("connection"), ip=ip),
        started=fields.word("started"),
        notice=fields.sentence("notice"),
        phases=fields.seconds_by_name("phases"),
    )


def restarted(fields: Fields, *, ip: str | None) -> Restarted:
    """The answer of /v1/restart."""
    return Restarted(
        kernel_generation=fields.integer("kernel_generation", low=1),
        connection=_connection(fields.inner("connection"), ip=ip),
        started_by=fields.optional("started_by", fields.word),
        phases=fields.seconds_by_name("phases"),
    )


def usage(fields: Fields) -> Usage:
    """The answer of /v1/usage."""
    return Usage(
        cpu_seconds=fields.number("cpu_seconds"),
        resident_bytes=fields.integer("resident_bytes"),
        proportional_bytes=fields.optional("proportional_bytes", fields.integer),
        processes=fields.integer("processes"),
        threads=fields.integer("threads"),
        memory_limit_bytes=fields.optional("memory_limit_bytes", fields.integer),
    )


def beat(fields: Fields) -> Beat:
    """One line of /v1/beats."""
    return Beat(
        protocol=fields.integer("protocol"),
        name=fields.text("name", limit=63),
        boot_id=fields.text("boot_id", limit=128),
        sequence=fields.integer("sequence"),
        state=fields.word("state"),
        message=fields.sentence("message"),
        kernel_state=fields.word("kernel_state"),
        kernel_generation=fields.integer("kernel_generation"),
        kernel_started_by=fields.optional("kernel_started_by", fields.word),
        notice=fields.sentence("notice"),
        idle_seconds=fields.number("idle_seconds"),
        cpu_seconds=fields.number("cpu_seconds"),
        resident_bytes=fields.integer("resident_bytes"),
        restarts=fields.integer("restarts"),
        claim_id=fields.optional("claim_id", lambda key: fields.text(key, limit=256)),
        kernel_id=fields.optional("kernel_id", lambda key: fields.text(key, limit=256)),
        exit=fields.optional("exit", lambda key: kernel_exit(fields.inner(key))),
    )


def kernel_exit(fields: Fields) -> KernelExit:
    """The `exit` of a beat."""
    return KernelExit(
        generation=fields.integer("generation"),
        code=fields.optional("code", lambda key: fields.integer(key, low=-(2**31))),
        signal=fields.optional("signal", lambda key: fields.integer(key, low=1, high=64)),
        reason=fields.word("reason"),
        message=fields.sentence("message") or "",
        restarted=fields.boolean("restarted"),
    )


def _connection(fields: Fields, *, ip: str | None) -> ConnectionInfo:
    own = fields.text("ip", limit=64)
    if ip is None:
        if not _is_loopback(own):
            raise fields.wrong("ip", "an address of this machine's loopback")
    elif own != ip:
        raise fields.wrong("ip", "the launcher's own address")
    if fields.text("transport", limit=16) != "tcp":
        raise fields.wrong("transport", "tcp")
    scheme = fields.text("signature_scheme", limit=64)
    if not re.fullmatch(r"hmac-[a-z0-9_]+", scheme):
        raise fields.wrong("signature_scheme", "an HMAC scheme")
    ports = {
        f"{channel}_port": fields.integer(f"{channel}_port", low=1, high=65_535)
        for channel in ("shell", "iopub", "stdin", "control", "hb")
    }
    if len(set(ports.values())) != len(ports):
        raise fields.wrong("shell_port", "different from the other four ports")
    return ConnectionInfo(
        ip=own,
        transport="tcp",
        key=fields.text("key", limit=1_024),
        signature_scheme=scheme,
        kernel_name=fields.text("kernel_name", limit=256, empty=True),
        **ports,
    )


def _claim(fields: Fields) -> ClaimRecord:
    return ClaimRecord(
        claim_id=fields.text("claim_id", limit=256),
        kernel_id=fields.text("kernel_id", limit=256),
        kernel_name=fields.text("kernel_name", limit=256, empty=True),
        username=fields.text("username", limit=1_024, empty=True),
        working_directory=fields.optional("working_directory", fields.text),
        attributes=fields.mapping("attributes"),
        claimed_at=fields.number("claimed_at"),
    )


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
