"""Minutes of the same, counted before and after: what leaks a little shows only here. Run: scripts/test soak."""

from __future__ import annotations

import json
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import websocket

from tests.servers import KERNELSPEC, USER, Gateway, closing

ROUNDS = 300
WARM_UP = 20
RESTARTS = 20
RESIDENT_GROWTH_BYTES = 40 * 1024**2
DESCRIPTOR_GROWTH = 8

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(directory=tmp_path / "gateway", pool_size=2)
    with closing(gateway):
        yield gateway


def _claim(gateway: Gateway) -> str:
    kernel: str = gateway.request("POST", "/api/kernels", {"name": KERNELSPEC, "env": {"KERNEL_USERNAME": USER}})["id"]
    return kernel


def _print(gateway: Gateway, kernel: str, code: str) -> str:
    """What a cell prints, over a WebSocket of its own."""
    url = f"ws://127.0.0.1:{gateway.port}/api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
    socket = websocket.create_connection(url, header=[f"Authorization: token {gateway.token}"], timeout=30)
    try:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": "s", "username": "", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        request = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}
        socket.send(json.dumps(request))
        while True:
            message = json.loads(socket.recv())
            if message["parent_header"].get("msg_id") == header["msg_id"] and message["header"]["msg_type"] == "stream":
                return str(message["content"]["text"])
    finally:
        socket.close()


def _settled(gateway: Gateway) -> None:
    """Wait until the pool is full and nothing is claimed or ending."""
    deadline = time.monotonic() + 60
    while True:
        totals = gateway.request("GET", "/api/egknative/pools")["totals"]
        if totals["ready"] == gateway.pool_size and not (totals["booting"] or totals["claimed"] or totals["retiring"]):
            return
        assert time.monotonic() < deadline, totals
        time.sleep(0.1)


def _process(gateway: Gateway) -> psutil.Process:
    assert gateway.process is not None
    return psutil.Process(gateway.process.pid)


def test_hundreds_of_kernels_leave_nothing_behind(gateway: Gateway) -> None:
    def one_round(number: int) -> None:
        kernel = _claim(gateway)
        assert _print(gateway, kernel, f"print({number} * 2)") == f"{number * 2}\n"
        gateway.request("DELETE", f"/api/kernels/{kernel}")

    for number in range(WARM_UP):
        one_round(number)
    _settled(gateway)
    process = _process(gateway)
    members = gateway.run_directory / "members"
    before = (process.num_fds(), process.num_threads(), process.memory_info().rss, len(gateway.launchers()))
    for number in range(ROUNDS):
        one_round(number)
    _settled(gateway)
    after = (process.num_fds(), process.num_threads(), process.memory_info().rss, len(gateway.launchers()))
    print(f"descriptors, threads, resident bytes, processes: {before} before, {after} after {ROUNDS} kernels")
    assert after[0] <= before[0] + DESCRIPTOR_GROWTH
    assert after[1] == before[1]
    assert after[2] <= before[2] + RESIDENT_GROWTH_BYTES
    assert after[3] == before[3]
    assert len(list(members.iterdir())) == gateway.pool_size


def test_a_kernel_outlives_many_gateways(gateway: Gateway) -> None:
    kernel = _claim(gateway)
    assert _print(gateway, kernel, "count = 0; print(count)") == "0\n"
    for number in range(1, RESTARTS + 1):
        gateway.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
        gateway.start()
        assert _print(gateway, kernel, "count += 1; print(count)") == f"{number}\n"
    assert [known["id"] for known in gateway.request("GET", "/api/kernels")] == [kernel]
    gateway.request("DELETE", f"/api/kernels/{kernel}")
    _settled(gateway)
