"""Who is let in, and who may start what."""

from __future__ import annotations

import pytest

from eg_knative.errors import ConfigurationError, NotAllowedError
from eg_knative.gateway.token import accepts, is_loopback, presented_tokens, settle_token
from eg_knative.processproxies.authorization import is_authorized, names_of, require_authorized


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.5.5", "::1", "localhost"])
def test_loopback_makes_a_token(host: str) -> None:
    assert is_loopback(host)
    made, was_made = settle_token("", host=host)
    assert was_made
    assert len(made) == 48
    assert settle_token("", host=host)[0] != made
    assert settle_token("given", host=host) == ("given", False)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "gateway.example.org", "127.0.0.1.example.org"])
def test_elsewhere_a_token_must_be_given(host: str) -> None:
    assert not is_loopback(host)
    assert settle_token("given", host=host) == ("given", False)
    with pytest.raises(ConfigurationError, match="EG_AUTH_TOKEN"):
        settle_token("", host=host)


@pytest.mark.parametrize(
    ("authorization", "arguments", "found"),
    [
        (None, [], ()),
        ("token abc", [], ("abc",)),
        ("Token abc", [], ("abc",)),
        ("Bearer abc", [], ("abc",)),
        ("bearer  abc ", [], ("abc",)),
        ("Basic abc", [], ()),
        ("tokenabc", [], ()),
        (None, ["abc"], ("abc",)),
        ("token abc", ["def"], ("abc", "def")),
    ],
)
def test_where_a_token_may_be(authorization: str | None, arguments: list[str], found: tuple[str, ...]) -> None:
    assert presented_tokens(authorization=authorization, arguments=arguments) == found


def test_what_is_accepted() -> None:
    assert accepts("secret", presented=("secret",))
    assert accepts("secret", presented=("wrong", "secret"))
    for wrong in ((), ("",), ("secre",), ("secret ",), ("SECRET",), ("sécret",), ("\udcff",)):
        assert not accepts("secret", presented=wrong)


def test_sets_of_users_in_either_form() -> None:
    assert names_of("bob, alice,") == {"bob", "alice"}
    assert names_of(["bob", "alice"]) == {"bob", "alice"}
    assert names_of({"bob"}) == {"bob"}
    assert names_of(None) == names_of("") == names_of([""]) == frozenset()


@pytest.mark.parametrize(
    ("config", "authorized", "unauthorized", "expected"),
    [
        ({}, (), (), True),
        ({}, (), ("alice",), False),
        ({}, ("alice",), ("alice",), False),
        ({}, ("bob",), (), False),
        ({}, ("alice", "bob"), (), True),
        ({"authorized_users": "alice"}, ("bob",), (), True),
        ({"authorized_users": ["bob"]}, ("alice",), (), False),
        ({"unauthorized_users": "alice,bob"}, ("alice",), (), False),
        ({"authorized_users": "alice", "unauthorized_users": "alice"}, (), (), False),
        ({"authorized_users": "Alice"}, (), (), False),
    ],
)
def test_enterprise_gateways_rule(
    config: dict[str, object], authorized: tuple[str, ...], unauthorized: tuple[str, ...], expected: bool
) -> None:
    assert is_authorized("alice", config=config, authorized=authorized, unauthorized=unauthorized) is expected
    if not expected:
        with pytest.raises(NotAllowedError, match="KERNEL_USERNAME"):
            require_authorized("alice", kernelspec="k", config=config, authorized=authorized, unauthorized=unauthorized)
