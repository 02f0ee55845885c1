"""Well-formed answers of docs/launcher-protocol.md, to be spoilt by tests."""

from __future__ import annotations

from typing import Any

CONNECTION: dict[str, Any] = {
    "ip": "127.0.0.1",
    "transport": "tcp",
    "shell_port": 1001,
    "iopub_port": 1002,
    "stdin_port": 1003,
    "control_port": 1004,
    "hb_port": 1005,
    "key": "the-secret-key",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "python",
}
CLAIM: dict[str, Any] = {
    "claim_id": "c1",
    "kernel_id": "k1",
    "kernel_name": "python",
    "username": "ada",
    "working_directory": None,
    "attributes": {"a": [1]},
    "claimed_at": 12.5,
}
HEALTH: dict[str, Any] = {"protocol": 1, "name": "m", "boot_id": "b", "state": "ready", "message": None}
CONNECTION_ANSWER: dict[str, Any] = {"boot_id": "b", "kernel_generation": 2, "connection": CONNECTION, "claim": CLAIM}
PROMOTION: dict[str, Any] = {
    "boot_id": "b",
    "claim_id": "c1",
    "kernel_generation": 1,
    "connection": CONNECTION,
    "started": "running",
    "notice": None,
    "phases": {"inside": 0.001},
}
RESTARTED: dict[str, Any] = {"kernel_generation": 2, "connection": CONNECTION, "started_by": "spare", "phases": {}}
USAGE: dict[str, Any] = {
    "cpu_seconds": 1.5,
    "resident_bytes": 10,
    "proportional_bytes": None,
    "processes": 1,
    "threads": 2,
    "memory_limit_bytes": 99,
}
BEAT: dict[str, Any] = {
    "protocol": 1,
    "name": "m",
    "boot_id": "b",
    "sequence": 12,
    "state": "claimed",
    "message": None,
    "kernel_state": "idle",
    "kernel_generation": 1,
    "kernel_started_by": "fork",
    "notice": None,
    "idle_seconds": 3.2,
    "cpu_seconds": 1.5,
    "resident_bytes": 36700160,
    "restarts": 0,
    "claim_id": "c1",
    "kernel_id": "k1",
    "exit": {
        "generation": 1,
        "code": None,
        "signal": 9,
        "reason": "signalled",
        "message": "The kernel was ended by signal 9.",
        "restarted": True,
    },
}
