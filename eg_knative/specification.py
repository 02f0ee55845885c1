"""What eg-knative knows of a kernelspec: `kernel.json` plus `metadata.process_proxy.config`, checked once.

It exists so that every floor reads one frozen, validated object instead of nested dictionaries. It does no I/O and does not
say whether the kernel can really be started.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from eg_knative.errors import ConfigurationError

PROCESS_PROXY_KEYS = ("authorized_users", "unauthorized_users", "port_range")
"""Keys of `process_proxy.config` that belong to Enterprise Gateway itself; accepted and left to it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolConfiguration:
    """How a kernelspec is kept warm.

    `floor`/`ceiling`: wanted number of ready members, at least and at most. None: the gateway's `pool_size`.
    `maximum_age_seconds`: a ready member older than this is replaced.
    """

    enabled: bool = True
    floor: int | None = None
    ceiling: int | None = None
    pre_import: tuple[str, ...] = ()
    import_time_variables: tuple[str, ...] = ()
    maximum_age_seconds: float = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSpecification:
    """One kernelspec as this project uses it. `argv` still holds `{connection_file}`; other placeholders are filled."""

    name: str
    display_name: str
    language: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    interrupt_mode: Literal["signal", "message"]
    substrate: str
    pool: PoolConfiguration
    start: Literal["auto", "boot", "claim"] = "auto"
    zygote: bool = True
    spare: bool = True
    auto_restart: Literal["always", "on_failure", "never"] = "always"
    launch_timeout_seconds: float | None = None
    environment_allow: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change when anything does that a running member was started with."""
        document = dataclasses.asdict(self)
        for quiet in ("display_name", "launch_timeout_seconds", "environment_allow"):
            del document[quiet]
        for quiet in ("enabled", "floor", "ceiling", "maximum_age_seconds"):
            del document["pool"][quiet]
        encoded = json.dumps(document, sort_keys=True, default=dict).encode()
        return hashlib.sha256(encoded).hexdigest()[:16]


def parse_specification(*, name: str, document: Mapping[str, Any], resource_dir: str, python: str) -> KernelSpecification:
    """Check one `kernel.json`.

    `python` is the interpreter that stands for a bare `python` in `argv[0]`, as jupyter_client does it.
    Raises ConfigurationError that names the field, what was found and the remedy.
    """
    config = _mapping(_mapping(document.get("metadata", {}), "metadata").get("process_proxy", {}), "metadata.process_proxy").get(
        "config", {}
    )
    config = _mapping(config, "metadata.process_proxy.config")
    where = "metadata.process_proxy.config"
    known = {"substrate", "pool", "start", "zygote", "spare", "auto_restart", "launch_timeout_seconds", "environment"}
    _no_unknown(config, known | set(PROCESS_PROXY_KEYS), where)
    pool = _mapping(config.get("pool", {}), f"{where}.pool")
    _no_unknown(pool, {f.name for f in dataclasses.fields(PoolConfiguration)}, f"{where}.pool")
    environment = _mapping(config.get("environment", {}), f"{where}.environment")
    _no_unknown(environment, {"allow"}, f"{where}.environment")

    floor = _count(pool, "floor", f"{where}.pool")
    ceiling = _count(pool, "ceiling", f"{where}.pool")
    if floor is not None and ceiling is not None and floor > ceiling:
        raise ConfigurationError(
            f"{where}.pool.floor is {floor}, above {where}.pool.ceiling ({ceiling}). Raise the ceiling or lower the floor.",
            field=f"{where}.pool.floor",
        )
    argv = _strings(document, "argv", "")
    if not argv:
        raise ConfigurationError("argv is empty or missing. Give the kernel's command as a list of strings.", field="argv")
    if argv[0] in {"python", "python3"}:
        argv = (python, *argv[1:])
    argv = tuple(part.replace("{resource_dir}", resource_dir) for part in argv)
    if not any("{connection_file}" in part for part in argv):
        raise ConfigurationError(
            "argv has no {connection_file}. The kernel learns its ports and key from that file: add it to argv.",
            field="argv",
        )
    env = _mapping(document.get("env", {}), "env")
    for key, value in env.items():
        if not isinstance(value, str):
            raise ConfigurationError(f"env.{key} is not a string. Put the value in quotes.", field=f"env.{key}")
    return KernelSpecification(
        name=name,
        display_name=_string(document, "display_name", name),
        language=_string(document, "language", ""),
        argv=argv,
        env=dict(env),
        interrupt_mode=_choice(document, "interrupt_mode", "signal", ("signal", "message"), ""),  # type: ignore[arg-type]
        substrate=_string(config, "substrate", "local"),
        pool=PoolConfiguration(
            enabled=_boolean(pool, "enabled", True, f"{where}.pool"),
            floor=floor,
            ceiling=ceiling,
            pre_import=_strings(pool, "pre_import", f"{where}.pool"),
            import_time_variables=_strings(pool, "import_time_variables", f"{where}.pool"),
            maximum_age_seconds=_seconds(pool, "maximum_age_seconds", f"{where}.pool") or 86_400.0,
        ),
        start=_choice(config, "start", "auto", ("auto", "boot", "claim"), where),  # type: ignore[arg-type]
        zygote=_boolean(config, "zygote", True, where),
        spare=_boolean(config, "spare", True, where),
        auto_restart=_choice(config, "auto_restart", "always", ("always", "on_failure", "never"), where),  # type: ignore[arg-type]
        launch_timeout_seconds=_seconds(config, "launch_timeout_seconds", where),
        environment_allow=_strings(environment, "allow", f"{where}.environment"),
    )


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} is not an object. Write it as {{…}}.", field=where)
    return value


def _no_unknown(mapping: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else f" Known here: {', '.join(sorted(known))}."
            raise ConfigurationError(f"{where}.{key} is not known.{hint}", field=f"{where}.{key}")


def _string(mapping: Mapping[str, Any], key: str, default: str) -> str:
    value = mapping.get(key, default)
    if not isinstance(value, str):
        raise ConfigurationError(f"{key} is not a string. Put it in quotes.", field=key)
    return value


def _strings(mapping: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = mapping.get(key, [])
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ConfigurationError(f"{_at(where, key)} is not a list of strings.", field=_at(where, key))
    return tuple(value)


def _boolean(mapping: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = mapping.get(key, default)
    if not isinstance(value, bool):
        raise ConfigurationError(f"{_at(where, key)} is not true or false.", field=_at(where, key))
    return value


def _count(mapping: Mapping[str, Any], key: str, where: str) -> int | None:
    value = mapping.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10_000:
        raise ConfigurationError(f"{_at(where, key)} is not a whole number from 0 to 10000.", field=_at(where, key))
    return value


def _seconds(mapping: Mapping[str, Any], key: str, where: str) -> float | None:
    value = mapping.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 31_536_000:
        raise ConfigurationError(f"{_at(where, key)} is not a number of seconds above 0.", field=_at(where, key))
    return float(value)


def _choice(mapping: Mapping[str, Any], key: str, default: str, choices: tuple[str, ...], where: str) -> str:
    value = mapping.get(key, default)
    if value not in choices:
        raise ConfigurationError(f"{_at(where, key)} must be one of {', '.join(choices)}.", field=_at(where, key))
    return str(value)
