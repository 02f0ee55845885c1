"""The words of the launcher protocol: token check, promotion request, beat. Pure; the HTTP is in `app`."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from eg_launcher.config import PROTOCOL, environment
from eg_launcher.errors import ConfigurationError, RequestError

LARGEST_BODY = 2 * 1024 * 1024
LARGEST_ATTRIBUTES = 16 * 1024
_KERNEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def hash_token(token: str) -> str:
    """SHA-256 of a token, as the configuration holds it."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def token_matches(*, authorization: str | None, token_sha256: str) -> bool:
    """Whether an Authorization header carries the token; takes the same time whatever is wrong with it."""
    scheme, _, token = (authorization or "").partition(" ")
    matches = hmac.compare_digest(hash_token(token.strip()), token_sha256)
    return matches and scheme.lower() == "bearer"


@dataclasses.dataclass(frozen=True)
class Promotion:
    """An accepted promotion's body, checked."""

    claim_id: str
    kernel_id: str
    kernel_name: str
    username: str
    env: Mapping[str, str] = dataclasses.field(repr=False)
    working_directory: str | None
    attributes: Mapping[str, Any]

    def as_claim(self, *, claimed_at: float) -> dict[str, Any]:
        """What is told about the claim later: everything but the environment."""
        return {
            "claim_id": self.claim_id,
            "kernel_id": self.kernel_id,
            "kernel_name": self.kernel_name,
            "username": self.username,
            "working_directory": self.working_directory,
            "attributes": dict(self.attributes),
            "claimed_at": claimed_at,
        }


@dataclasses.dataclass(frozen=True)
class Beat:
    """One line of `GET /v1/beats`, but for `sequence`, which is the stream's."""

    name: str
    boot_id: str
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
    exit: Mapping[str, Any] | None

    def as_line(self, *, sequence: int) -> bytes:
        """The beat as it is sent."""
        return json.dumps({"protocol": PROTOCOL, "sequence": sequence, **dataclasses.asdict(self)}).encode() + b"\n"


def parse_body(body: bytes) -> dict[str, Any]:
    """A request's JSON object; an empty body is an empty object. Raises RequestError (400)."""
    try:
        document = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise RequestError(400, "bad_request", "The body is not JSON") from None
    if not isinstance(document, dict):
        raise RequestError(400, "bad_request", "The body is not a JSON object")
    return document


def parse_promotion(document: Mapping[str, Any]) -> Promotion:
    """Check a promotion's types and limits. Raises RequestError (400, or 422 for the environment and the kernel id)."""
    known = {field.name for field in dataclasses.fields(Promotion)}
    for name in document:
        if name not in known:
            raise _bad("is not a field of a promotion", name[:200])
    attributes = document.get("attributes", {})
    if not isinstance(attributes, dict):
        raise _bad("must be an object", "attributes")
    if len(json.dumps(attributes)) > LARGEST_ATTRIBUTES:
        raise _bad(f"is larger than {LARGEST_ATTRIBUTES} bytes", "attributes")
    kernel_id = _string(document, "kernel_id")
    if not _KERNEL_ID.fullmatch(kernel_id):
        message = "kernel_id must be 1 to 128 letters, digits, '-', '_' or '.', the first a letter or digit"
        raise RequestError(422, "bad_kernel_id", message, field="kernel_id")
    claim_id = _string(document, "claim_id")
    if not 1 <= len(claim_id) <= 256:
        raise _bad("must have 1 to 256 characters", "claim_id")
    raw = document.get("env", {})
    if not isinstance(raw, dict):
        raise _bad("must be an object", "env")
    try:
        env = environment(raw)
    except ConfigurationError as error:
        raise RequestError(422, "bad_environment", f"The environment {error}", field="env") from None
    return Promotion(
        claim_id=claim_id,
        kernel_id=kernel_id,
        kernel_name=_string(document, "kernel_name", default=""),
        username=_string(document, "username", default=""),
        env=env,
        working_directory=_directory(document.get("working_directory")),
        attributes=attributes,
    )


def number(document: Mapping[str, Any], name: str, *, default: float, least: float, most: float) -> float:
    """A number within limits out of a request. Raises RequestError (400)."""
    value = document.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _bad(f"must be a number from {least:g} to {most:g}", name)
    return float(value)


def _bad(message: str, field: str) -> RequestError:
    return RequestError(400, "bad_request", f"{field} {message}", field=field)


def _string(document: Mapping[str, Any], name: str, *, default: str | None = None) -> str:
    value = document.get(name, default)
    if not isinstance(value, str):
        raise _bad("is missing" if value is None else "must be a string", name)
    if "\0" in value or len(value) > 4096:
        raise _bad("must be at most 4096 characters without NUL", name)
    return value


def _directory(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise _bad("must be an absolute path or null", "working_directory")
    return value


def check_directory(path: str) -> None:
    """Raises RequestError (422) unless a kernel can be in this directory."""
    if not os.path.isdir(path) or not os.access(path, os.X_OK):
        message = f"The working directory {path} does not exist or cannot be entered"
        raise RequestError(422, "working_directory_missing", message, field="working_directory")
