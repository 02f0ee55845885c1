"""The sender's side of Enterprise Gateway's payload, as its launchers write it; only tests need it."""

from __future__ import annotations

import base64
import json
from typing import Any

from Cryptodome.Cipher import AES, PKCS1_v1_5
from Cryptodome.PublicKey import RSA
from Cryptodome.Random import get_random_bytes
from Cryptodome.Util.Padding import pad

KERNEL_ID = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def connection_information(**changes: Any) -> dict[str, Any]:
    """What `launch_ipykernel.py` puts into its payload."""
    information = {
        "shell_port": 40001,
        "iopub_port": 40002,
        "stdin_port": 40003,
        "control_port": 40004,
        "hb_port": 40005,
        "ip": "0.0.0.0",
        "key": "b94f2f9e-1d0d-4c1b-8c3a-0d7d6f1c7c11",
        "transport": "tcp",
        "signature_scheme": "hmac-sha256",
        "kernel_name": "",
        "pid": 4242,
        "pgid": 4200,
        "comm_port": 40006,
        "kernel_id": KERNEL_ID,
        **changes,
    }
    return {name: value for name, value in information.items() if value is not ...}


def version_1(information: Any, *, public_key: str, version: object = 1) -> bytes:
    """`_encrypt` of launch_ipykernel.py."""
    aes_key = get_random_bytes(16)
    encrypted = AES.new(aes_key, mode=AES.MODE_ECB).encrypt(pad(json.dumps(information).encode(), 16))
    wrapped = PKCS1_v1_5.new(key=RSA.importKey(base64.b64decode(public_key))).encrypt(aes_key)
    envelope = {
        "version": version,
        "key": base64.b64encode(wrapped).decode(),
        "conn_info": base64.b64encode(encrypted).decode(),
    }
    return base64.b64encode(json.dumps(envelope).encode())


def version_0(information: dict[str, Any], *, kernel_id: str) -> bytes:
    """The launchers of Enterprise Gateway 1 and 2: AES keyed by the kernel id, filled with the number of missing characters."""
    text = json.dumps({name: value for name, value in information.items() if name != "kernel_id"})
    missing = 16 - len(text) % 16
    text += chr(missing) * missing
    return base64.b64encode(AES.new(kernel_id[:16].encode(), AES.MODE_ECB).encrypt(text.encode()))
