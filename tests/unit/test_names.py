"""Names are DNS labels for any kernelspec name; tokens are derived, never stored."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from eg_knative.names import member_token, new_member_name, slug, token_digest

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@given(st.text(max_size=300))
def test_any_kernelspec_name_gives_a_dns_label(kernelspec: str) -> None:
    assert DNS_LABEL.fullmatch(new_member_name(kernelspec))


def test_two_members_of_one_kernelspec_never_share_a_name() -> None:
    assert len({new_member_name("python") for _ in range(1_000)}) == 1_000


def test_a_slug_reads_like_its_text() -> None:
    assert slug("Python 3.11 (GPU)", limit=63) == "python-3-11-gpu"
    assert slug("日本語", limit=63) == "kernel"


def test_a_token_depends_on_the_secret_and_the_name() -> None:
    tokens = {member_token(secret=secret, member_name=name) for secret in (b"a", b"b") for name in ("x", "y")}
    assert len(tokens) == 4


def test_a_member_gets_the_digest_of_its_token() -> None:
    # SHA-256 of "abc", from FIPS 180-2, appendix B.1.
    assert token_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
