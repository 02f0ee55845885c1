"""The configuration object, checked: every refusal names the field. See docs/launcher-protocol.md for what the fields mean."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from eg_launcher.errors import ConfigurationError

PROTOCOL = 1
LARGEST_VALUE_BYTES = 128 * 1024
LARGEST_ENVIRONMENT_BYTES = 1024 * 1024

_NAME = re.compile(r"[a-z0-9-]{1,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """What to run and how. Times in seconds."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_directory: str | None
    kernel_name: str
    interrupt_mode: str
    start: str
    pre_import: tuple[str, ...]
    import_time_variables: frozenset[str]
    zygote: bool
    spare: bool
    auto_restart: str
    restart_limit: int
    start_timeout_seconds: float


@dataclasses.dataclass(frozen=True)
class Config:
    """One launcher's whole configuration. Times in seconds."""

    name: str
    listen: str
    token_sha256: str
    kernel: KernelConfig
    ip: str
    ports: tuple[int, ...]
    connection_directory: str
    unclaimed_timeout_seconds: float
    abandoned_timeout_seconds: float


def parse_config(document: Any) -> Config:
    """Check a configuration object. Raises ConfigurationError with the field at fault."""
    top = _Fields(document, "")
    if top.take("protocol", _whole, PROTOCOL) != PROTOCOL:
        raise ConfigurationError(f"this launcher speaks {PROTOCOL}", field="protocol")
    kernel = _Fields(top.take("kernel", _mapping), "kernel.")
    config = Config(
        name=top.take("name", _matching(_NAME, "1 to 63 of a-z, 0-9 and -")),
        listen=top.take("listen", _listen),
        token_sha256=top.take("token_sha256", _matching(_DIGEST, "64 hexadecimal digits")),
        kernel=KernelConfig(
            argv=kernel.take("argv", _argv),
            env=kernel.take("env", environment, {}),
            working_directory=kernel.take("working_directory", _optional_path, None),
            kernel_name=kernel.take("kernel_name", _text, ""),
            interrupt_mode=kernel.take("interrupt_mode", _one_of("signal", "message"), "signal"),
            start=kernel.take("start", _one_of("auto", "boot", "claim"), "auto"),
            pre_import=kernel.take("pre_import", _texts, ()),
            import_time_variables=frozenset(kernel.take("import_time_variables", _texts, ())),
            zygote=kernel.take("zygote", _flag, True),
            spare=kernel.take("spare", _flag, True),
            auto_restart=kernel.take("auto_restart", _one_of("always", "on_failure", "never"), "on_failure"),
            restart_limit=kernel.take("restart_limit", _whole, 5),
            start_timeout_seconds=kernel.take("start_timeout_seconds", _seconds, 60.0),
        ),
        ip=top.take("ip", _text, "127.0.0.1"),
        ports=top.take("ports", _ports, (0, 0, 0, 0, 0)),
        connection_directory=top.take("connection_directory", _path),
        unclaimed_timeout_seconds=top.take("unclaimed_timeout_seconds", _seconds, 60.0),
        abandoned_timeout_seconds=top.take("abandoned_timeout_seconds", _seconds, 86400.0),
    )
    kernel.finish()
    top.finish()
    return config


class _Fields:
    """Take each known field out of an object once; what is left over is unknown."""

    def __init__(self, document: Any, prefix: str) -> None:
        self._left = _mapping(document) if prefix else _top(document)
        self._prefix = prefix

    def take(self, name: str, check: Callable[[Any], _T], *default: Any) -> _T:
        """The checked value. Raises ConfigurationError."""
        if name not in self._left:
            if default:
                value: _T = default[0]
                return value
            raise ConfigurationError("is missing", field=self._prefix + name)
        try:
            return check(self._left.pop(name))
        except ConfigurationError as error:
            raise ConfigurationError(str(error), field=self._prefix + name) from None

    def finish(self) -> None:
        """Refuse what nobody took."""
        for name in self._left:
            raise ConfigurationError("is not a field of the configuration", field=f"{self._prefix}{name}"[:200])


def environment(value: Any) -> dict[str, str]:
    """Check an environment. Raises ConfigurationError; the message names the variable, never its value."""
    checked = _mapping(value)
    total = 0
    for name, text in checked.items():
        if not name or "=" in name or "\0" in name:
            raise ConfigurationError("has a name that is empty or holds '=' or NUL")
        if not isinstance(text, str):
            raise ConfigurationError(f"{name[:200]} is not a string")
        if "\0" in text:
            raise ConfigurationError(f"{name[:200]} holds NUL")
        try:
            size = len(text.encode())
            total += size + len(name.encode()) + 2
        except UnicodeEncodeError:
            raise ConfigurationError(f"{name[:200]!r} is not valid Unicode") from None
        # The system's limit for one string of an environment; a process with more cannot be started.
        if size > LARGEST_VALUE_BYTES:
            raise ConfigurationError(f"{name[:200]} has {size} bytes; the limit is {LARGEST_VALUE_BYTES}")
    if total > LARGEST_ENVIRONMENT_BYTES:
        raise ConfigurationError(f"has {total} bytes; the limit is {LARGEST_ENVIRONMENT_BYTES}")
    return checked


def _top(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigurationError("The configuration is not a JSON object")
    return dict(value)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ConfigurationError("must be an object")
    return dict(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ConfigurationError("must be a string without NUL")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigurationError("must be a list of strings")
    return tuple(_text(each) for each in value)


def _argv(value: Any) -> tuple[str, ...]:
    argv = _texts(value)
    if not argv or not argv[0]:
        raise ConfigurationError("must name a program")
    return argv


def _path(value: Any) -> str:
    path = _text(value)
    if not path.startswith("/"):
        raise ConfigurationError("must be an absolute path")
    return path


def _optional_path(value: Any) -> str | None:
    return None if value is None else _path(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError("must be true or false")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError("must be a whole number, 0 or more")
    return value


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9:
        raise ConfigurationError("must be a number of seconds greater than 0")
    return float(value)


def _ports(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != 5:
        raise ConfigurationError("must be a list of 5 ports")
    ports = tuple(_whole(port) for port in value)
    given = [port for port in ports if port]
    if any(port > 65535 for port in ports) or len(set(given)) != len(given):
        raise ConfigurationError("must be 5 different ports, or 0")
    return ports


def _listen(value: Any) -> str:
    listen = _text(value)
    if listen.startswith("unix:/"):
        return listen
    scheme, _, rest = listen.partition(":")
    ip, _, port = rest.rpartition(":")
    if scheme != "tcp" or not ip or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError("must be unix:/path or tcp:IP:PORT")
    return listen


def _matching(pattern: re.Pattern[str], words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ConfigurationError(f"must be {words}")
        return value

    return check


def _one_of(*words: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in words:
            raise ConfigurationError(f"must be one of {', '.join(words)}")
        return str(value)

    return check
