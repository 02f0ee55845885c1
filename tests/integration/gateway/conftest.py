"""The real gateway in a process of its own: one for all tests that leave it as they found it, and new ones for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.gateway.driver import Driver


@pytest.fixture(scope="session")
def shared_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(directory=tmp_path_factory.mktemp("gateway"), options=["--debug"])
    driver.start()
    try:
        yield driver
    finally:
        driver.close()


@pytest.fixture
def gateway(shared_gateway: Driver) -> Iterator[Driver]:
    """The shared gateway. Kernels that a test leaves are shut down after it."""
    yield shared_gateway
    for kernel in shared_gateway.get("/api/kernels").body:
        shared_gateway.call("DELETE", f"/api/kernels/{kernel['id']}")


@pytest.fixture
def new_gateway(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Make gateways with options of their own; not started. All are ended after the test."""
    made: list[Driver] = []

    def make(*, name: str = "gateway", pool_size: int = 1, options: Sequence[str] = (), **env: str) -> Driver:
        driver = Driver(directory=tmp_path / name, pool_size=pool_size, options=options, env=env)
        made.append(driver)
        return driver

    yield make
    for driver in made:
        driver.close()
