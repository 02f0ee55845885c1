"""The configuration's checks: what is accepted, and the field that each refusal names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from eg_launcher.config import LARGEST_VALUE_BYTES, environment, parse_config
from eg_launcher.errors import ConfigurationError

GOOD: dict[str, Any] = {
    "protocol": 1,
    "name": "m-1",
    "listen": "unix:/run/m-1",
    "token_sha256": "0" * 64,
    "kernel": {"argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]},
    "connection_directory": "/run/c",
}


def _with(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(GOOD)
    place = document
    *way, last = path.split(".")
    for step in way:
        place = place[step]
    place[last] = value
    return document


def test_defaults_are_the_documents() -> None:
    config = parse_config(GOOD)
    kernel = config.kernel
    assert (config.ip, config.ports) == ("127.0.0.1", (0, 0, 0, 0, 0))
    assert (config.unclaimed_timeout_seconds, config.abandoned_timeout_seconds) == (60, 86400)
    assert (kernel.env, kernel.working_directory, kernel.kernel_name) == ({}, None, "")
    assert (kernel.interrupt_mode, kernel.start, kernel.auto_restart) == ("signal", "auto", "on_failure")
    assert (kernel.restart_limit, kernel.start_timeout_seconds, kernel.zygote, kernel.spare) == (5, 60, True, True)
    assert (kernel.pre_import, kernel.import_time_variables) == ((), frozenset())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("protocol", 2),
        ("name", "Upper"),
        ("name", ""),
        ("name", "x" * 64),
        ("name", None),
        ("listen", "unix:relative"),
        ("listen", "tcp:1.2.3.4"),
        ("listen", "tcp:1.2.3.4:99999"),
        ("token_sha256", "0" * 63),
        ("token_sha256", "G" * 64),
        ("connection_directory", "relative"),
        ("ports", [0, 0, 0, 0]),
        ("ports", [1, 1, 0, 0, 0]),
        ("ports", [0, 0, 0, 0, 70000]),
        ("ports", [0, 0, 0, 0, True]),
        ("ip", 7),
        ("unclaimed_timeout_seconds", 0),
        ("unclaimed_timeout_seconds", float("nan")),
        ("abandoned_timeout_seconds", "60"),
        ("surprise", 1),
        ("kernel.surprise", 1),
        ("kernel.argv", []),
        ("kernel.argv", "python"),
        ("kernel.argv", ["a\0b"]),
        ("kernel.env", {"A": 1}),
        ("kernel.env", {"A=B": "1"}),
        ("kernel.env", {"": "1"}),
        ("kernel.env", ["A=1"]),
        ("kernel.working_directory", "relative"),
        ("kernel.interrupt_mode", "kill"),
        ("kernel.start", "later"),
        ("kernel.auto_restart", True),
        ("kernel.zygote", "yes"),
        ("kernel.restart_limit", -1),
        ("kernel.restart_limit", True),
        ("kernel.start_timeout_seconds", -1),
        ("kernel.pre_import", "numpy"),
    ],
)
def test_a_refusal_names_the_field(path: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_config(_with(path, value))
    assert caught.value.field == path
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["name", "listen", "token_sha256", "kernel", "connection_directory"])
def test_what_has_no_default_must_be_there(name: str) -> None:
    document = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(ConfigurationError, match="is missing") as caught:
        parse_config(document)
    assert caught.value.field == name


@pytest.mark.parametrize("document", [None, [], "x", 7])
def test_a_configuration_is_an_object(document: Any) -> None:
    with pytest.raises(ConfigurationError):
        parse_config(document)


def test_an_environments_limits() -> None:
    assert environment({"A": "one\ntwo", "B": "ü" * 10}) == {"A": "one\ntwo", "B": "ü" * 10}
    environment({"A": "x" * LARGEST_VALUE_BYTES})
    for bad in (
        {"A": "x" * (LARGEST_VALUE_BYTES + 1)},
        {f"V{i}": "x" * 100_000 for i in range(11)},
        {"A": "\0"},
        {"A": "\ud800"},
    ):
        with pytest.raises(ConfigurationError):
            environment(bad)


def test_a_value_is_never_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        environment({"PASSWORD": "hunter2\0"})
    assert "hunter2" not in str(caught.value)
