"""Many kernels, one after the other and at once: none is lost, and nothing is left over."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable

import psutil
import pytest

from tests.integration.gateway.driver import Driver, wait_until


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """What the gateway and its members use."""

    processes: int
    threads: int
    files: int
    members: frozenset[str]
    ports: int


def count(gateway: Driver) -> Count:
    """The gateway's own threads and files, and the processes, listening ports and directories of all that belongs to it."""
    assert gateway.process is not None
    own = psutil.Process(gateway.process.pid)
    family = gateway.family()
    listening = 0
    for process in family:
        listening += sum(each.status == psutil.CONN_LISTEN for each in process.net_connections("tcp"))
    members = gateway.run_directory / "members"
    return Count(
        processes=len(family),
        threads=own.num_threads(),
        files=own.num_fds(),
        members=frozenset(path.name for path in members.iterdir()),
        ports=listening,
    )


def warmed_up(gateway: Driver) -> Count:
    """Count after a first kernel: what is made once (a thread pool, a module's files) is no leak."""
    for _ in range(3):
        kernel_id = gateway.launch()
        gateway.execute(kernel_id, "1")
        gateway.call("DELETE", f"/api/kernels/{kernel_id}")
    gateway.settle(ready=gateway.pool_size)
    return count(gateway)


def require_the_same(gateway: Driver, before: Count) -> None:
    gateway.settle(ready=gateway.pool_size)

    def same() -> bool:
        now = count(gateway)
        return now.processes == before.processes and now.files <= before.files + 2

    wait_until(same, timeout=20)
    now = count(gateway)
    assert now.ports == before.ports
    assert now.threads <= before.threads + 4  # the default thread pool grows to its size and stays
    assert len(now.members) == len(before.members)


@pytest.mark.timeout(300)
def test_fifty_in_a_row(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=3)
    gateway.start()
    before = warmed_up(gateway)
    for number in range(50):
        kernel_id = gateway.launch(KERNEL_NUMBER=str(number))
        assert gateway.execute(kernel_id, "import os; print(os.environ['KERNEL_NUMBER'])") == str(number)
        assert gateway.call("DELETE", f"/api/kernels/{kernel_id}").status == 204
    require_the_same(gateway, before)
    assert gateway.get("/api/kernels").body == []
    assert " ERROR " not in gateway.text_of_log()
    assert "Traceback" not in gateway.text_of_log()


@pytest.mark.timeout(300)
def test_twenty_at_once(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=3, EG_KERNEL_LAUNCH_TIMEOUT="120")
    gateway.start()
    before = warmed_up(gateway)

    async def one(number: int) -> str:
        kernel_id = await asyncio.to_thread(gateway.launch, KERNEL_NUMBER=str(number))
        code = "import os; print(os.environ['KERNEL_NUMBER'])"
        assert await gateway.execute_soon(kernel_id, code, timeout=60) == str(number)
        return kernel_id

    async def all_at_once() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(20)))

    ids = asyncio.run(all_at_once())
    assert len(set(ids)) == 20
    assert {kernel["id"] for kernel in gateway.get("/api/kernels").body} == set(ids)

    async def end_all() -> list[int]:
        calls = [asyncio.to_thread(gateway.call, "DELETE", f"/api/kernels/{kernel_id}") for kernel_id in ids]
        return [answer.status for answer in await asyncio.gather(*calls)]

    assert asyncio.run(end_all()) == [204] * 20
    require_the_same(gateway, before)
    assert "Traceback" not in gateway.text_of_log()


def test_a_thousand_idle_connections_stop_nobody(gateway: Driver) -> None:
    clients = []
    try:
        for number in range(1000):
            client = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
            clients.append(client)
            if number % 2:
                client.sendall(b"POST /api/kernels HTTP/1.1\r\nHost: x\r\nContent-Le")
        kernel_id = gateway.launch()
        assert gateway.execute(kernel_id, "1 + 1") == "2"
    finally:
        for client in clients:
            client.close()


def test_slow_clients_are_cut_off(new_gateway: Callable[..., Driver]) -> None:
    options = ["--EgKnativeApp.idle_connection_timeout=1", "--EgKnativeApp.body_timeout=1"]
    gateway = new_gateway(pool_size=0, options=options)
    gateway.start()
    head = b"POST /api/kernels HTTP/1.1\r\nHost: x\r\n"
    for sent in (b"", head, head + b"Content-Length: 10\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
            client.sendall(sent)
            assert client.recv(65536) == b""
    assert gateway.get("/api/kernels").body == []


def test_a_client_that_goes_away_leaves_no_kernel(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(pool_size=0)
    gateway.start()
    before = len(gateway.family())
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        head = f"POST /api/kernels HTTP/1.1\r\nHost: x\r\nAuthorization: token {gateway.token}\r\nContent-Length: 2\r\n\r\n{{}}"
        client.sendall(head.encode())
        wait_until(lambda: gateway.pool()["booting"] > 0)
    wait_until(lambda: gateway.pool()["booting"] == 0 and gateway.pool()["retiring"] == 0)
    assert gateway.get("/api/kernels").body == []
    wait_until(lambda: len(gateway.family()) <= before + 1)  # the nursery of local launchers stays
