"""A house for each test, and the count of what a test leaves behind: anything at all fails it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from eg_knative.specification import KernelSpecification, parse_specification
from eg_knative.substrates.contract import Substrate
from tests.contract.houses import HOUSES, Belongings, House

SETTLE_SECONDS = 10.0


async def settled(house: House) -> dict[str, list[str]]:
    """The traces once they stop going away; what is killed a moment ago may be in the table still."""
    for _ in range(int(SETTLE_SECONDS / 0.05)):
        traces = house.traces()
        if not any(traces.values()):
            return traces
        await asyncio.sleep(0.05)
    return traces


@pytest.fixture(params=sorted(HOUSES))
async def house(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[House]:
    before = Belongings.now()
    house = HOUSES[request.param](tmp_path)
    yield house
    await house.close()
    traces = await settled(house)
    assert not any(traces.values()), f"left behind: {traces}"
    assert Belongings.now() == before


@pytest.fixture
async def substrate(house: House) -> Substrate:
    return await house.open()


@pytest.fixture
def specification(house: House) -> Callable[..., KernelSpecification]:
    """Makes a kernelspec of the house's substrate: an ipykernel unless told otherwise."""

    def make(
        *, argv: list[str] | None = None, env: dict[str, str] | None = None, name: str = "python_test", **config: object
    ) -> KernelSpecification:
        document = {
            "display_name": "Python under test",
            "language": "python",
            "argv": argv or [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "env": env or {},
            "metadata": {"process_proxy": {"config": {"substrate": house.substrate_name, **config}}},
        }
        return parse_specification(name=name, document=document, resource_dir="", python=sys.executable)

    return make
