"""Who may start which kernel: Enterprise Gateway's sets of users, decided by pure functions.

A user name here is what the request says (`KERNEL_USERNAME`); it is not proof of identity. Proof is the token's and the
authorizer's business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from eg_knative.errors import NotAllowedError


def names_of(value: Any) -> frozenset[str]:
    """A set of user names from a kernelspec's `config`: EG writes "bob,alice", people also write a list."""
    if isinstance(value, str):
        return frozenset(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, Collection):
        return frozenset(str(name) for name in value if str(name))
    return frozenset()


def is_authorized(
    username: str, *, config: Mapping[str, Any], authorized: Collection[str], unauthorized: Collection[str]
) -> bool:
    """EG's rule: refused when in either unauthorized set; else the kernelspec's authorized set, when it has one, replaces the
    gateway's; an empty set admits everybody."""
    if username in names_of(unauthorized) or username in names_of(config.get("unauthorized_users")):
        return False
    admitted = names_of(config.get("authorized_users")) or names_of(authorized)
    return not admitted or username in admitted


def require_authorized(
    username: str, *, kernelspec: str, config: Mapping[str, Any], authorized: Collection[str], unauthorized: Collection[str]
) -> None:
    """Raises NotAllowedError (reason `unauthorized_user`, field `KERNEL_USERNAME`) that says how to go on."""
    if not is_authorized(username, config=config, authorized=authorized, unauthorized=unauthorized):
        raise NotAllowedError(
            f"User '{username}' may not start kernel '{kernelspec}'. Send another user name as KERNEL_USERNAME in "
            "the request's env, or ask the operator to change authorized_users or unauthorized_users.",
            reason="unauthorized_user",
            field="KERNEL_USERNAME",
        )
