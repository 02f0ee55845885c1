"""Everything wrong that a client can send is answered with a reason and a message, and makes nothing."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.gateway.driver import Answer, Driver


@pytest.fixture
def nothing_made(gateway: Driver) -> Iterator[Driver]:
    """After the test there is what was there before: the same members, processes and kernels."""
    gateway.settle(ready=1)
    before, processes = gateway.inventory(), {process.pid for process in gateway.family()}
    yield gateway
    gateway.settle(ready=1)
    assert gateway.inventory() == before
    assert {process.pid for process in gateway.family()} == processes


def refused(answer: Answer, status: int, reason: str) -> dict[str, Any]:
    assert answer.status == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    body: dict[str, Any] = answer.body
    assert body["reason"] == reason
    assert body["message"].endswith(".")
    assert "Traceback" not in answer.text
    assert "traceback" not in body
    return body


@pytest.mark.parametrize(
    ("body", "status", "reason", "field", "word"),
    [
        ({"name": "no-such-kernel"}, 404, "unknown_kernelspec", "name", "python_pooled_local"),
        ({"name": "../../etc/passwd"}, 404, "unknown_kernelspec", "name", "Known:"),
        ({"name": 5}, 400, "bad_request", "name", "string"),
        ({"path": 5}, 400, "bad_request", "path", "string"),
        ({"path": "a\0b"}, 400, "bad_request", "path", "NUL"),
        ({"env": []}, 400, "bad_request", "env", "object"),
        ({"env": "KERNEL_X=1"}, 400, "bad_request", "env", "object"),
        ({"env": {"KERNEL_X": 5}}, 400, "bad_request", "env.KERNEL_X", "string"),
        ({"env": {"KERNEL_X": None}}, 400, "bad_request", "env.KERNEL_X", "string"),
        ({"env": {"KERNEL_X": ["a"]}}, 400, "bad_request", "env.KERNEL_X", "string"),
        ({"env": {"KERNEL_X": "a\0b"}}, 400, "bad_request", "env.KERNEL_X", "NUL"),
        ({"env": {"KERNEL_X": "\ud800"}}, 400, "bad_request", "env.KERNEL_X", "Unicode"),
        ({"env": {"": "x"}}, 400, "bad_request", "env", "empty"),
        ({"env": {"KERNEL_A=B": "x"}}, 400, "bad_request", "env", "="),
        ({"env": {"KERNEL_X": "x" * 1_000_000}}, 400, "environment_too_large", "env.KERNEL_X", "128 KiB"),
        ({"env": {f"KERNEL_{n}": "x" * 10_000 for n in range(100)}}, 400, "environment_too_large", "env", "512 KiB"),
        ({"env": {"KERNEL_ID": "not-a-uuid"}}, 400, "bad_kernel_id", "env.KERNEL_ID", "version 4"),
        ({"env": {"KERNEL_ID": str(uuid.uuid1())}}, 400, "bad_kernel_id", "env.KERNEL_ID", "version 4"),
        ({"env": {"KERNEL_ID": str(uuid.uuid4()).upper()}}, 400, "bad_kernel_id", "env.KERNEL_ID", "lower case"),
        ({"env": {"KERNEL_LAUNCH_TIMEOUT": "soon"}}, 400, "bad_request", "env.KERNEL_LAUNCH_TIMEOUT", "number"),
        ({"env": {"KERNEL_LAUNCH_TIMEOUT": "-1"}}, 400, "bad_request", "env.KERNEL_LAUNCH_TIMEOUT", "between"),
        ({"env": {"KERNEL_LAUNCH_TIMEOUT": "nan"}}, 400, "bad_request", "env.KERNEL_LAUNCH_TIMEOUT", "between"),
        ({"env": {"KERNEL_WORKING_DIR": "/no/such/place"}}, 400, "working_directory_missing", "KERNEL_WORKING_DIR", "Create it"),
        ({"env": {"KERNEL_WORKING_DIR": "relative"}}, 400, "working_directory_missing", "KERNEL_WORKING_DIR", "EG_MIRROR"),
        ([], 400, "bad_json", None, "object"),
        ("kernel", 400, "bad_json", None, "object"),
    ],
)
def test_a_wrong_body_names_its_field(
    nothing_made: Driver, body: Any, status: int, reason: str, field: str | None, word: str
) -> None:
    answer = refused(nothing_made.call("POST", "/api/kernels", body), status, reason)
    assert answer.get("field") == field
    assert word in answer["message"]


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[" * 100_000, b"{'name': 'x'}", b"name=x"])
def test_a_body_that_is_not_json(nothing_made: Driver, raw: bytes) -> None:
    refused(nothing_made.call("POST", "/api/kernels", raw=raw), 400, "bad_json")


def test_a_body_above_the_limit(nothing_made: Driver) -> None:
    answer = nothing_made.call("POST", "/api/kernels", {"env": {"KERNEL_X": "x" * 5_000_000}})
    assert "4194304" in refused(answer, 413, "body_too_large")["message"]


def test_a_chunked_body_above_the_limit(nothing_made: Driver) -> None:
    with socket.create_connection(("127.0.0.1", nothing_made.port), timeout=10) as client:
        head = f"POST /api/kernels HTTP/1.1\r\nHost: x\r\nAuthorization: token {nothing_made.token}\r\n"
        client.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(6):
            client.sendall(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
        client.sendall(b"0\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_length_that_is_a_lie(nothing_made: Driver) -> None:
    with socket.create_connection(("127.0.0.1", nothing_made.port), timeout=10) as client:
        client.sendall(b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999999\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("junk", [b"\0" * 4096, b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"A" * 100_000])
def test_junk_on_the_port_harms_nobody(nothing_made: Driver, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", nothing_made.port), timeout=10) as client:
        client.sendall(junk)
        assert nothing_made.get("/api/kernels").status == 200


def test_an_id_that_is_taken(gateway: Driver) -> None:
    kernel_id = str(uuid.uuid4())
    assert gateway.launch(KERNEL_ID=kernel_id) == kernel_id
    answer = refused(gateway.call("POST", "/api/kernels", {"env": {"KERNEL_ID": kernel_id}}), 409, "duplicate_kernel_id")
    assert answer["field"] == "env.KERNEL_ID"
    assert [kernel["id"] for kernel in gateway.get("/api/kernels").body] == [kernel_id]


def test_newlines_quotes_and_dollars_arrive_as_they_are(gateway: Driver) -> None:
    value = "line one\nline two\t$HOME `id` \"quoted\" 'too' ünïcödé"
    kernel_id = gateway.launch(KERNEL_X=value)
    assert gateway.execute(kernel_id, "import os, json; print(json.dumps(os.environ['KERNEL_X']))") == json.dumps(value)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "token wrong"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "token"},
        {"Authorization": ""},
        {"Authorization": "Basic d3Jvbmc6d3Jvbmc="},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api"),
        ("GET", "/api/kernels"),
        ("POST", "/api/kernels"),
        ("GET", "/api/kernelspecs"),
        ("GET", "/api/kernelspecs/python3"),
        ("GET", "/kernelspecs/python_pooled_local/logo-svg.svg"),
        ("GET", "/api/sessions"),
        ("POST", "/api/sessions"),
        ("GET", f"/api/kernels/{uuid.uuid4()}"),
        ("GET", f"/api/kernels/{uuid.uuid4()}/channels"),
        ("GET", "/api/egknative/pools"),
        ("GET", "/metrics"),
    ],
)
def test_nothing_is_told_without_the_token(gateway: Driver, headers: dict[str, str], method: str, path: str) -> None:
    refused(gateway.call(method, path, headers=headers), 401, "unauthorized")


@pytest.mark.parametrize("form", ["token {}", "Token {}", "Bearer {}", "bearer {}"])
def test_the_forms_of_the_token(gateway: Driver, form: str) -> None:
    assert gateway.call("GET", "/api/kernels", headers={"Authorization": form.format(gateway.token)}).status == 200
    assert gateway.call("GET", f"/api/kernels?token={gateway.token}", headers={}).status == 200
    assert gateway.call("OPTIONS", "/api/kernels", headers={}).status in {200, 204}


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/no/such/path", 404, "not_found"),
        ("PUT", "/api/kernels", 405, "method_not_allowed"),
        ("DELETE", "/api/kernels", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("BREW", "/api/kernels", 405, "method_not_allowed"),
        ("GET", f"/api/kernels/{uuid.uuid4()}", 404, "unknown_kernel"),
        ("DELETE", f"/api/kernels/{uuid.uuid4()}", 404, "unknown_kernel"),
        ("POST", f"/api/kernels/{uuid.uuid4()}/restart", 404, "unknown_kernel"),
        ("POST", f"/api/kernels/{uuid.uuid4()}/interrupt", 404, "unknown_kernel"),
        ("GET", f"/api/egknative/kernels/{uuid.uuid4()}", 404, "unknown_kernel"),
        ("GET", "/api/kernelspecs/nothing", 404, "unknown_kernelspec"),
        ("GET", f"/api/sessions/{uuid.uuid4()}", 404, "unknown_session"),
    ],
)
def test_paths_and_methods_that_are_not_there(nothing_made: Driver, method: str, path: str, status: int, reason: str) -> None:
    refused(nothing_made.call(method, path), status, reason)
