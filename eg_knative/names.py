"""Names of members, and the tokens that go with them.

Rules: a name is a DNS label (RFC 1123: lower-case letters, digits, hyphens, at most 63 characters, as Kubernetes asks of pods and
Services), valid for any kernelspec name, and never collides. Pure functions; randomness is the caller's only through `secrets`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

LABEL_LIMIT = 63
_SUFFIX_BYTES = 5


def slug(text: str, *, limit: int) -> str:
    """A readable DNS-label form of `text`, at most `limit` characters. Different texts may share a slug: add a suffix."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-") or "kernel"


def new_member_name(kernelspec: str) -> str:
    """A fresh name: the kernelspec's slug and ten random hexadecimal digits."""
    suffix = secrets.token_hex(_SUFFIX_BYTES)
    return f"{slug(kernelspec, limit=LABEL_LIMIT - len(suffix) - 4)}-{suffix}"


def member_token(*, secret: bytes, member_name: str) -> str:
    """The token that the gateway shows to a member: HMAC-SHA256(gateway secret, member name), in hexadecimal.

    Derived, so that no store of tokens exists and a restarted gateway with the same secret can speak to every member.
    """
    return hmac.new(secret, member_name.encode(), hashlib.sha256).hexdigest()


def token_digest(token: str) -> str:
    """What a member is given instead of its token: SHA-256, in hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()
