"""From the environment that a request asks for to the one that a kernel gets. Pure functions.

The rule: the operator's allow-lists, and the request's own `KERNEL_*`. Nothing else of the request, nothing of the gateway's own
environment that is not named, and nothing of anybody else's request.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from eg_knative.errors import BadRequestError

VALUE_LIMIT = 128 * 1024
"""Bytes of one variable, name included: Linux's own limit for one string of an environment (MAX_ARG_STRLEN)."""

TOTAL_LIMIT = 512 * 1024
"""Bytes of all variables that a request sets. Half of what a launcher takes, so that the kernelspec's own still fit."""

BASE_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""What a process on this machine needs to find its programs, its home and its language. No secret belongs there."""

_KERNEL_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentPolicy:
    """The operator's word on environments.

    `client`: names that a request may set besides `KERNEL_*`; `*` alone admits all. `inherited`: names and values that every
    kernel gets from the gateway.
    """

    client: frozenset[str]
    inherited: Mapping[str, str]

    @classmethod
    def build(cls, *, client: Collection[str], inherited: Collection[str], environ: Mapping[str, str]) -> EnvironmentPolicy:
        """From the options' lists, which may hold empty strings, and the process's environment."""
        return cls(
            client=frozenset(name for name in client if name),
            inherited={name: environ[name] for name in inherited if name and name in environ},
        )

    def allows(self, name: str, *, specification: Collection[str] = ()) -> bool:
        """May a request set `name`? `specification`: what the kernelspec itself lets it set (`environment.allow`)."""
        return name.startswith("KERNEL_") or name in self.client or self.client == {"*"} or name in specification


def kernel_environment(requested: Any, *, policy: EnvironmentPolicy, specification: Collection[str] = ()) -> dict[str, str]:
    """The variables that a kernel gets on top of its kernelspec's.

    `requested`: the request's `env`, unchecked; None when it has none. Raises BadRequestError that names the variable.
    """
    if requested is None:
        requested = {}
    if not isinstance(requested, Mapping):
        raise BadRequestError('env is not an object. Send {"NAME": "value", …}.', field="env")
    result = dict(policy.inherited)
    total = 0
    for name, value in requested.items():
        total += _checked(name, value)
        if total > TOTAL_LIMIT:
            raise BadRequestError(
                f"env is larger than {TOTAL_LIMIT // 1024} KiB. Pass large values in a file.",
                field="env",
                reason="environment_too_large",
            )
        if policy.allows(name, specification=specification):
            result[name] = value
    kernel_id = result.get("KERNEL_ID")
    if kernel_id is not None and kernel_id != "":
        require_kernel_id(kernel_id)
    for secret in ("EG_AUTH_TOKEN", "KG_AUTH_TOKEN"):
        result.pop(secret, None)
    return result


def require_kernel_id(text: str) -> str:
    """A version 4 UUID as `uuid.uuid4()` prints it, as EG asks. Raises BadRequestError."""
    if not _KERNEL_ID.fullmatch(text):
        raise BadRequestError(
            "KERNEL_ID is not a version 4 UUID in lower case. Omit it, or send one as Python's uuid.uuid4() makes it.",
            field="env.KERNEL_ID",
            reason="bad_kernel_id",
        )
    return text


def _checked(name: Any, value: Any) -> int:
    """Bytes of one variable. Raises BadRequestError; never repeats the value."""
    if not isinstance(name, str) or not name or "=" in name or "\0" in name:
        raise BadRequestError("env has a name that is empty or holds '=' or NUL. Correct the name.", field="env")
    shown = name if len(name) <= 64 else name[:64] + "…"
    if not isinstance(value, str):
        raise BadRequestError(f"The environment variable {shown} is not a string. Put its value in quotes.", field=f"env.{shown}")
    if "\0" in value:
        raise BadRequestError(
            f"The environment variable {shown} holds a NUL character, which no environment can. Remove it.", field=f"env.{shown}"
        )
    try:
        size = len(name.encode()) + len(value.encode()) + 2
    except UnicodeEncodeError as error:
        raise BadRequestError(
            f"The environment variable {shown} is not valid Unicode. Correct it.", field=f"env.{shown}"
        ) from error
    if size > VALUE_LIMIT:
        raise BadRequestError(
            f"The environment variable {shown} is larger than {VALUE_LIMIT // 1024} KiB. Pass it in a file.",
            field=f"env.{shown}",
            reason="environment_too_large",
        )
    return size
