"""What is written about requests and errors, and what is not."""

from __future__ import annotations

import logging

import pytest
from tornado import web

from eg_knative import errors
from eg_knative.gateway.logs import SecretFilter
from eg_knative.gateway.requests import describe
from eg_knative.processproxies.http import http_error, status_of


def filtered(message: str, *args: object) -> str:
    record = logging.LogRecord("x", logging.DEBUG, "f", 1, message, args, None)
    assert SecretFilter(token="s3cret/+").filter(record)
    return record.getMessage()


def test_lines_that_hold_environments_are_replaced() -> None:
    for line in (
        "BaseProcessProxy.launch_process() env: {'A': 'hunter2'}",
        "Kernel args: {'env': 'hunter2'}",
        "Bad JSON: 'hunter2'",
    ):
        assert "hunter2" not in filtered(line)
        assert "hunter2" not in filtered("%s", line)
    assert filtered("Kernel started: %s", "id") == "Kernel started: id"


def test_the_token_is_masked_wherever_it_is() -> None:
    for text in ("s3cret/+", "GET /api?token=s3cret%2F%2B", "a s3cret/+ b 100%"):
        assert "s3cret" not in filtered("%s", text)
        assert "[secret]" in filtered("%s", text)


def test_a_template_that_does_not_fit_is_left_to_logging() -> None:
    record = logging.LogRecord("x", logging.DEBUG, "f", 1, "%d", ("x",), None)
    assert SecretFilter(token="t").filter(record)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownKernelspecError("x"), 404),
        (errors.DuplicateKernelError("x"), 409),
        (errors.NotAllowedError("x"), 403),
        (errors.BadRequestError("x"), 400),
        (errors.LaunchTimeoutError("x"), 504),
        (errors.LaunchError("x"), 500),
        (errors.LauncherUnreachableError("x"), 502),
        (errors.LauncherRefusedError("x", reason="no_kernel", status=409), 409),
        (errors.LauncherRefusedError("x", reason="kernel_failed", status=500), 500),
        (errors.LauncherError("x"), 500),
        (errors.ConfigurationError("x"), 500),
    ],
)
def test_statuses(error: errors.EgKnativeError, status: int) -> None:
    assert status_of(error) == status


def test_an_errors_body() -> None:
    error = errors.BadRequestError("It is 100% wrong. Correct it.", field="env.A")
    assert describe(400, error) == {"reason": "bad_request", "message": "It is 100% wrong. Correct it.", "field": "env.A"}
    assert describe(400, http_error(error)) == describe(400, error)
    assert describe(404, web.HTTPError(404, "No %s here", "kernel")) == {"reason": "not_found", "message": "No kernel here"}
    sentence = "User 'x' is not authorized."
    assert describe(403, web.HTTPError(403, reason=sentence)) == {"reason": "forbidden", "message": sentence}
    assert describe(500, ValueError("a secret detail"))["message"] == "Internal Server Error."
