"""Fixtures: Pythons with this or that ipykernel, and launchers that leave nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator

import pytest

from tests.integration.launcher.launching import Members, environment_python
from tests.interpreters import find_python


@pytest.fixture(scope="session")
def ipykernel_6() -> str:
    return sys.executable


@pytest.fixture(scope="session")
def ipykernel_7() -> str:
    return environment_python("ipykernel7", sys.executable, "ipykernel>=7,<8", "numpy")


@pytest.fixture(scope="session")
def python_310() -> str:
    interpreter = find_python("3.10", environment=os.environ)
    if interpreter is None:
        pytest.skip("no python3.10 that can make virtual environments is on PATH or in pyenv's versions")
    return environment_python("python310", str(interpreter), "ipykernel>=6,<7", "numpy")


@pytest.fixture(params=["ipykernel_6", "ipykernel_7", "python_310"])
def any_python(request: pytest.FixtureRequest) -> str:
    python: str = request.getfixturevalue(request.param)
    return python


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    members = Members()
    yield members
    await members.close()
