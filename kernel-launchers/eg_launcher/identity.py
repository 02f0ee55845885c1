"""Who a kernel process is: environment, directory, key, connection file, argv.

Made for the pool first, for a user at promotion.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from eg_launcher.zygote_client import interpreter_of


@dataclasses.dataclass(frozen=True)
class Identity:
    """Everything that a promotion changes."""

    kernel_id: str
    kernel_name: str
    username: str
    env: Mapping[str, str] = dataclasses.field(repr=False)
    working_directory: str
    key: str = dataclasses.field(repr=False)
    connection_file: str

    def argv(self, template: Sequence[str]) -> list[str]:
        """The kernelspec's argv for this identity."""
        return [argument.replace("{connection_file}", self.connection_file) for argument in template]

    def for_kernel(self, template: Sequence[str]) -> dict[str, Any]:
        """What `inside` is told."""
        title = self.argv(template)
        parts = interpreter_of(title)
        return {
            "env": dict(self.env),
            "working_directory": self.working_directory,
            "key": self.key,
            "username": self.username,
            "connection_file": self.connection_file,
            "arguments": parts[1] if parts else [],
            "title": title,
        }


def new_key() -> str:
    """A fresh HMAC key."""
    return secrets.token_hex(32)


def connection_info(*, identity: Identity, ip: str, ports: Sequence[int]) -> dict[str, Any]:
    """Jupyter's connection information. `ports` in the configuration's order."""
    shell, iopub, stdin, control, heartbeat = ports
    return {
        "ip": ip,
        "transport": "tcp",
        "shell_port": shell,
        "iopub_port": iopub,
        "stdin_port": stdin,
        "control_port": control,
        "hb_port": heartbeat,
        "key": identity.key,
        "signature_scheme": "hmac-sha256",
        "kernel_name": identity.kernel_name,
    }


def write_connection_file(*, path: str, info: Mapping[str, Any]) -> None:
    """Write it whole and for its owner alone. Raises OSError."""
    temporary = f"{path}.{secrets.token_hex(4)}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(dict(info), file, indent=1)
        os.replace(temporary, path)
    except OSError:
        remove(temporary)
        raise


def remove(path: str) -> None:
    """Remove a file; none there is well too."""
    with contextlib.suppress(OSError):
        os.unlink(path)
