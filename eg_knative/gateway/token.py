"""The gateway's token: required, made when none is given, compared in constant time.

Pure but for `secrets`. It does not say who a user is, only that the request comes from somebody who knows the token.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Sequence
from urllib.parse import unquote

from eg_knative.errors import ConfigurationError

IN_PATH = re.compile(r"(?P<base>[^?#]*?)/token/(?P<token>[^/?#]+)(?P<rest>/api/.*)", re.DOTALL)
SCHEMES = ("token ", "bearer ")


def is_loopback(host: str) -> bool:
    """True when listening on `host` (a name or an address) reaches this machine alone. An empty host is every address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def settle_token(given: str, *, host: str) -> tuple[str, bool]:
    """The token to require, and whether it was made here.

    Raises ConfigurationError when none is given and the gateway would listen on more than loopback.
    """
    if given:
        return given, False
    if is_loopback(host):
        return secrets.token_hex(24), True
    raise ConfigurationError(
        f"No token is given, and the gateway would listen on {host or 'every address'}, where others can reach it. "
        "Set the environment variable EG_AUTH_TOKEN, or listen on 127.0.0.1.",
        field="auth_token",
    )


def presented_tokens(*, authorization: str | None, arguments: Sequence[str]) -> tuple[str, ...]:
    """The tokens that a request shows: `Authorization: token X` or `Bearer X` (any case), and `?token=X`."""
    found = list(arguments)
    if authorization is not None:
        for scheme in SCHEMES:
            if authorization[: len(scheme)].lower() == scheme:
                found.insert(0, authorization[len(scheme) :].strip())
    return tuple(found)


def take_from_path(path: str) -> tuple[str | None, str]:
    """The token of `…/token/TOKEN/api/…` and the path without it; None and the same path when it has no such part.

    The gateway client of jupyter_server 2 (nbclient, papermill and Elyra use it) opens its WebSocket without any header or
    argument. Its users can still name an address: JUPYTER_GATEWAY_WS_URL=ws://HOST:PORT/token/TOKEN.
    """
    found = IN_PATH.match(path)
    if found is None:
        return None, path
    return unquote(found["token"]), found["base"] + found["rest"]


def accepts(token: str, *, presented: Sequence[str]) -> bool:
    """True when one of `presented` is `token`; takes the same time whatever is wrong with them."""
    expected = token.encode()
    results = [hmac.compare_digest(candidate.encode("utf-8", "surrogatepass"), expected) for candidate in presented]
    return any(results)
