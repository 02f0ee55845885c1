"""What the launchers of stock Enterprise Gateway kernel images send when their kernel is about to listen, made safe to use.

It exists so that those images work unchanged. The format is Enterprise Gateway's, weak as it is (RSA-1024 with PKCS#1 v1.5
padding around an AES-128 key, AES in ECB mode, no signature): whoever has seen the public key and the kernel's id can send one.
So this module decodes and never encodes, and it does not promise that the sender is the kernel; it promises that what it
returns is of the right shape and names a kernel whose launch is waiting. Pure functions of bytes, no input or output.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from eg_knative.errors import LauncherError

KEY_BITS: Final = 1024
"""What the launchers' fixed-size fields and Enterprise Gateway's own key expect; a bigger key fails in old launchers."""

PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_AES_BLOCK: Final = 16
_LARGEST_PROCESS_ID: Final = 2**22  # the kernel's own limit (man 5 proc, pid_max)
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class PayloadError(LauncherError):
    """A payload that is not what a launcher sends. The message names the fault and repeats nothing of the payload."""

    reason = "bad_launcher_payload"


class PrivateConnectionInfo(dict[str, Any]):
    """Connection information that never shows its key when it is printed, formatted or logged (Enterprise Gateway logs it)."""

    def __repr__(self) -> str:
        return repr({name: "********" if name == "key" else value for name, value in self.items()})

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return format(repr(self), specification)


def new_private_key() -> rsa.RSAPrivateKey:
    """A fresh key pair; takes about 10 ms of one core (measured), 10 times less than Enterprise Gateway's own."""
    return rsa.generate_private_key(
        public_exponent=65_537, key_size=KEY_BITS
    )  # the launchers' format, see the module's docstring


def public_key_text(private_key: rsa.RSAPrivateKey) -> str:
    """The public key as launchers take it on their command line: the body of its PEM form, on one line."""
    encoded = private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(encoded).decode("ascii")


def decode_payload(data: bytes, *, private_key: rsa.RSAPrivateKey, waiting: Collection[str]) -> PrivateConnectionInfo:
    """Decrypt and check one payload, version 1 or the legacy version 0.

    `waiting`: ids of the kernels whose launch waits for a payload. The result holds `kernel_id`, the five ports, `ip`,
    `transport`, `key`, `signature_scheme` and, where the launcher sent them, `kernel_name`, `pid`, `pgid` and `comm_port`;
    nothing else passes. Raises PayloadError.
    """
    try:
        envelope = base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise PayloadError("The payload is not base64.") from error
    document = _json_object(envelope)
    if document is None:
        return _decode_version_0(envelope, waiting=waiting)
    if document.get("version") != 1:
        raise PayloadError("The payload's version is not 1. Use the launchers of Enterprise Gateway 3.")
    information = _json_object(_decrypt_version_1(document, private_key=private_key))
    if information is None:
        raise PayloadError("The payload was not encrypted with this gateway's public key, or is damaged.")
    return check_connection_information(information, waiting=waiting)


def check_connection_information(information: Mapping[str, Any], *, waiting: Collection[str]) -> PrivateConnectionInfo:
    """Take the known fields of a decrypted payload, each checked. Raises PayloadError that names the field."""
    kernel_id = information.get("kernel_id")
    if not isinstance(kernel_id, str) or kernel_id not in waiting:
        raise PayloadError("No launch waits for the kernel that the payload names.", field="kernel_id")
    checked = PrivateConnectionInfo(
        kernel_id=kernel_id,
        ip=_address(information.get("ip", "0.0.0.0")),
        transport=_one_of(information, "transport", ("tcp",)),
        signature_scheme=_one_of(information, "signature_scheme", ("hmac-sha256", "hmac-sha512")),
        key=_text(information, "key", shortest=1, longest=256),
    )
    for name in PORTS:
        checked[name] = _whole_number(information, name, smallest=1, largest=65_535)
    if len({checked[name] for name in PORTS}) != len(PORTS):
        raise PayloadError("Two channels of the payload share a port.", field="shell_port")
    if information.get("comm_port") is not None:
        checked["comm_port"] = _whole_number(information, "comm_port", smallest=1, largest=65_535)
    for name in ("pid", "pgid"):
        # Enterprise Gateway sends signals to these: 0 and negative numbers would reach whole groups of other processes.
        if information.get(name) is not None:
            checked[name] = _whole_number(information, name, smallest=1, largest=_LARGEST_PROCESS_ID)
    if information.get("kernel_name") is not None:
        checked["kernel_name"] = _text(information, "kernel_name", shortest=0, longest=256)
    return checked


def _decrypt_version_1(document: Mapping[str, Any], *, private_key: rsa.RSAPrivateKey) -> bytes:
    try:
        wrapped_key = base64.b64decode(_text(document, "key", shortest=1, longest=1024), validate=True)
        encrypted = base64.b64decode(_text(document, "conn_info", shortest=1, longest=65_536), validate=True)
        # OpenSSL answers a wrong padding with random bytes, not an error, so that nothing here tells an attacker about it.
        key = private_key.decrypt(wrapped_key, padding.PKCS1v15())
        clear = _decrypt(encrypted, key=key[:_AES_BLOCK])
    except ValueError as error:
        raise PayloadError("The payload was not encrypted with this gateway's public key, or is damaged.") from error
    filler = clear[-1] if clear else 0
    return clear[:-filler] if 1 <= filler <= _AES_BLOCK else b""


def _decode_version_0(encrypted: bytes, *, waiting: Collection[str]) -> PrivateConnectionInfo:
    """Version 0 has no kernel id: the id is the AES key. Only the first block is tried with each, so that junk stays cheap."""
    if encrypted and len(encrypted) % _AES_BLOCK == 0:
        for kernel_id in waiting:
            key = kernel_id[:_AES_BLOCK].encode()
            if len(key) != _AES_BLOCK or not _decrypt(encrypted[:_AES_BLOCK], key=key).startswith(b"{"):
                continue
            body, brace, _padding = _decrypt(encrypted, key=key).rpartition(b"}")
            information = _json_object(body + brace)
            if information is not None:
                return check_connection_information({**information, "kernel_id": kernel_id}, waiting=waiting)
    raise PayloadError("The payload is neither version 1 nor encrypted for a kernel whose launch is waiting.")


def _decrypt(data: bytes, *, key: bytes) -> bytes:
    decryptor = Cipher(algorithms.AES(key), modes.ECB()).decryptor()  # noqa: S305 (the launchers' format)
    return decryptor.update(data) + decryptor.finalize()


def _json_object(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _text(information: Mapping[str, Any], name: str, *, shortest: int, longest: int) -> str:
    value = information.get(name)
    if not isinstance(value, str) or not shortest <= len(value) <= longest:
        raise PayloadError(f"{name} is missing or not a string of {shortest} to {longest} characters.", field=name)
    return value


def _one_of(information: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = information.get(name, choices[0])
    if value not in choices:
        raise PayloadError(f"{name} is not one of {', '.join(choices)}.", field=name)
    return str(value)


def _whole_number(information: Mapping[str, Any], name: str, *, smallest: int, largest: int) -> int:
    value = information.get(name)
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(largest)):
        value = int(value)  # launchers in R and Scala quote numbers
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise PayloadError(f"{name} is not a whole number from {smallest} to {largest}.", field=name)
    return value


def _address(value: object) -> str:
    if isinstance(value, str) and len(value) <= 253:
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            if _HOST_NAME.fullmatch(value):
                return value
    raise PayloadError("ip is neither an address nor a host name.", field="ip")
