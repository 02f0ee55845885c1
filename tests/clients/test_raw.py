"""A client of a few lines: HTTP, one WebSocket, JSON; and what jupyter_server asks of a gateway."""

from __future__ import annotations

import json
import struct
import urllib.error
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import websocket

from tests.servers import KERNELSPEC, NO_PROXY, USER, Gateway, Lab, closing, lab_python

BINARY = "v1.kernel.websocket.jupyter.org"


@pytest.fixture
def kernel(gateway: Gateway) -> Iterator[str]:
    made = gateway.request("POST", "/api/kernels", {"name": KERNELSPEC, "env": {"KERNEL_USERNAME": USER}})
    yield made["id"]
    gateway.request("DELETE", f"/api/kernels/{made['id']}")


def _connect(gateway: Gateway, kernel: str, *, subprotocol: str | None = None) -> websocket.WebSocket:
    url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
    protocols = [subprotocol] if subprotocol else None
    return websocket.create_connection(url, header=[f"Authorization: token {gateway.token}"], subprotocols=protocols, timeout=20)


def _execute_request(code: str) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": uuid.uuid4().hex,
        "username": "",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content}


def test_a_cell_over_the_json_subprotocol(gateway: Gateway, kernel: str) -> None:
    request = _execute_request("print(6 * 7)")
    socket = _connect(gateway, kernel)
    socket.send(json.dumps(request | {"channel": "shell", "buffers": []}))
    seen: list[tuple[str, str]] = []
    text = ""
    while ("iopub", "idle") not in seen or ("shell", "execute_reply") not in seen:
        message = json.loads(socket.recv())
        if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        text += message["content"].get("text", "")
        seen.append((message["channel"], message["content"].get("execution_state") or message["header"]["msg_type"]))
    socket.close()
    assert text == "42\n"
    assert seen[0] == ("iopub", "busy")


def test_a_cell_over_the_binary_subprotocol(gateway: Gateway, kernel: str) -> None:
    request = _execute_request("print(6 * 7)")
    socket = _connect(gateway, kernel, subprotocol=BINARY)
    assert socket.getsubprotocol() == BINARY
    parts = [b"shell", *(json.dumps(request[key]).encode() for key in ("header", "parent_header", "metadata", "content"))]
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    socket.send_binary(struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts))
    text = ""
    while not text:
        frame = socket.recv()
        count = struct.unpack_from("<Q", frame)[0]
        ends = struct.unpack_from(f"<{count}Q", frame, 8)
        channel, header, parent, _, content = (frame[ends[n] : ends[n + 1]] for n in range(5))
        if channel == b"iopub" and json.loads(header)["msg_type"] == "stream":
            assert json.loads(parent)["msg_id"] == request["header"]["msg_id"]
            text = json.loads(content)["text"]
    socket.close()
    assert text == "42\n"


def test_a_wrong_token_opens_no_websocket(gateway: Gateway, kernel: str) -> None:
    url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel}/channels"
    socket = websocket.WebSocket()
    socket.settimeout(20)
    with pytest.raises(websocket.WebSocketBadStatusException) as refused:
        socket.connect(url, header=["Authorization: token wrong"])
    socket.shutdown()
    assert refused.value.status_code in {401, 403}


def test_an_unknown_kernelspec_is_refused_in_words(gateway: Gateway) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        gateway.request("POST", "/api/kernels", {"name": "no_such_kernelspec", "env": {"KERNEL_USERNAME": USER}})
    with refused.value as error:
        answer = json.loads(error.read())
    assert refused.value.code in {400, 404}
    assert "no_such_kernelspec" in answer["message"]
    assert "Traceback" not in json.dumps(answer)
    assert gateway.request("GET", "/api/kernels") == []


def test_jupyter_server_finds_the_kernelspecs_and_their_logos(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> None:
    if lab_python() is None:
        pytest.skip("JupyterLab's environment .venv-lab is missing. Run: scripts/test clients")
    lab = Lab(directory=tmp_path_factory.mktemp("lab"), gateway=gateway)
    with closing(lab):
        listing = lab.request("GET", "/api/kernelspecs")
        assert listing["default"] in listing["kernelspecs"]
        resources = listing["kernelspecs"][KERNELSPEC]["resources"]
        assert set(resources) >= {"logo-64x64", "logo-svg"}
        with NO_PROXY.open(f"{lab.url}{resources['logo-64x64']}?token={lab.token}", timeout=20) as logo:
            assert logo.read(8) == b"\x89PNG\r\n\x1a\n"
        made = lab.request("POST", "/api/kernels", {"name": KERNELSPEC})
        assert [kernel["id"] for kernel in lab.request("GET", "/api/kernels")] == [made["id"]]
        lab.request("POST", f"/api/kernels/{made['id']}/interrupt")
        lab.request("POST", f"/api/kernels/{made['id']}/restart")
        lab.request("DELETE", f"/api/kernels/{made['id']}")
        assert gateway.request("GET", "/api/kernels") == []
