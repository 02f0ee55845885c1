"""What a request's env becomes."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eg_knative.errors import BadRequestError
from eg_knative.gateway.environment import TOTAL_LIMIT, VALUE_LIMIT, EnvironmentPolicy, kernel_environment

ENVIRON = {"PATH": "/bin", "SECRET": "hunter2", "SHARED": "everybody's"}


def policy(*, client: tuple[str, ...] = (), inherited: tuple[str, ...] = ()) -> EnvironmentPolicy:
    return EnvironmentPolicy.build(client=client, inherited=inherited, environ=ENVIRON)


def test_without_env_there_is_the_operators_alone() -> None:
    assert kernel_environment(None, policy=policy()) == {}
    assert kernel_environment({}, policy=policy(inherited=("SHARED", "ABSENT", ""))) == {"SHARED": "everybody's"}


def test_what_is_admitted() -> None:
    env = {"KERNEL_X": "1", "A": "2", "B": "3", "SECRET": "mine"}
    assert kernel_environment(env, policy=policy()) == {"KERNEL_X": "1"}
    assert kernel_environment(env, policy=policy(client=("A", ""))) == {"KERNEL_X": "1", "A": "2"}
    assert kernel_environment(env, policy=policy(), specification=("B",)) == {"KERNEL_X": "1", "B": "3"}
    assert kernel_environment(env, policy=policy(client=("*",))) == env


def test_a_star_among_names_is_a_name() -> None:
    assert kernel_environment({"A": "1", "B": "2"}, policy=policy(client=("*", "A"))) == {"A": "1"}


def test_the_request_wins_over_what_is_inherited() -> None:
    env = {"SHARED": "mine"}
    assert kernel_environment(env, policy=policy(client=("SHARED",), inherited=("SHARED",))) == {"SHARED": "mine"}


def test_the_gateways_token_never_goes_along() -> None:
    for name in ("EG_AUTH_TOKEN", "KG_AUTH_TOKEN"):
        built = EnvironmentPolicy.build(client=("*",), inherited=(name,), environ={name: "token"})
        assert kernel_environment({name: "other"}, policy=built) == {}


@pytest.mark.parametrize("env", [[], "A=1", 5, True, ["A"]])
def test_env_is_an_object(env: Any) -> None:
    with pytest.raises(BadRequestError) as caught:
        kernel_environment(env, policy=policy())
    assert caught.value.field == "env"


@pytest.mark.parametrize("value", [1, 1.5, None, True, [], {}])
def test_values_are_strings_admitted_or_not(value: Any) -> None:
    for name in ("KERNEL_X", "DROPPED"):
        with pytest.raises(BadRequestError) as caught:
            kernel_environment({name: value}, policy=policy())
        assert caught.value.field == f"env.{name}"


def test_sizes() -> None:
    fits = "x" * (VALUE_LIMIT - len("KERNEL_X") - 2)
    assert kernel_environment({"KERNEL_X": fits}, policy=policy()) == {"KERNEL_X": fits}
    with pytest.raises(BadRequestError) as caught:
        kernel_environment({"KERNEL_X": fits + "x"}, policy=policy())
    assert caught.value.reason == "environment_too_large"
    with pytest.raises(BadRequestError) as caught:
        kernel_environment({f"DROPPED_{n}": "x" * 1000 for n in range(TOTAL_LIMIT // 1000)}, policy=policy())
    assert caught.value.field == "env"


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(BadRequestError) as caught:
        kernel_environment({"N" * 10_000: 5}, policy=policy())
    assert len(caught.value.message) < 300


def test_kernel_ids() -> None:
    good = str(uuid.uuid4())
    assert kernel_environment({"KERNEL_ID": good}, policy=policy())["KERNEL_ID"] == good
    for bad in ("x", good.upper(), str(uuid.uuid1()), good + "\n", f"{{{good}}}", good.replace("-", "")):
        with pytest.raises(BadRequestError, match="version 4"):
            kernel_environment({"KERNEL_ID": bad}, policy=policy())


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5))
def test_whatever_is_sent_an_environment_results_or_a_refusal_without_the_value(env: dict[str, str]) -> None:
    marked = {name: f"{value}-not-to-be-told" for name, value in env.items()}
    built, told = {}, ""
    try:
        built = kernel_environment(marked, policy=policy(client=("*",)))
    except BadRequestError as error:
        told = error.message
    assert "not-to-be-told" not in told
    for name, value in built.items():
        assert name
        assert "=" not in name
        assert "\0" not in name + value
        assert value == marked[name]
