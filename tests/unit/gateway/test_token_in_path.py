"""A token as part of the address, for clients that can send it nowhere else."""

from __future__ import annotations

import pytest

from eg_knative.gateway.token import take_from_path

FOUND = {
    "/token/abc/api/kernels/1/channels": ("abc", "/api/kernels/1/channels"),
    "/token/abc/api/kernels/1/channels?session_id=x": ("abc", "/api/kernels/1/channels?session_id=x"),
    "/base/token/a%2Fb/api/kernels": ("a/b", "/base/api/kernels"),
}
LEFT_ALONE = [
    "/",
    "/api/kernels/1/channels?next=/token/abc/api/x",
    "/kernelspecs/token/logo.png",
    "/token/abc",
    "/token//api/kernels",
    "/token/abc/metrics",
]


@pytest.mark.parametrize(("path", "answer"), FOUND.items())
def test_the_token_is_taken_out_of_the_path(path: str, answer: tuple[str, str]) -> None:
    assert take_from_path(path) == answer


@pytest.mark.parametrize("path", LEFT_ALONE)
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert take_from_path(path) == (None, path)
