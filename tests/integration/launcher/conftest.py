"""Fixtures: Pythons with this or that ipykernel, and launchers that leave nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from tests.integration.launcher.launching import Members, environment_python


@pytest.fixture(scope="session")
def ipykernel_6() -> str:
    return sys.executable


@pytest.fixture(scope="session")
def ipykernel_7() -> str:
    return environment_python("ipykernel7", sys.executable, "ipykernel>=7,<8", "numpy")


@pytest.fixture(scope="session")
def python_310() -> str:
    interpreter = shutil.which("python3.10")
    if interpreter is None or subprocess.run([interpreter, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip("there is no python3.10 here")
    return environment_python("python310", interpreter, "ipykernel>=6,<7", "numpy")


@pytest.fixture(params=["ipykernel_6", "ipykernel_7", "python_310"])
def any_python(request: pytest.FixtureRequest) -> str:
    python: str = request.getfixturevalue(request.param)
    return python


@pytest.fixture
async def members() -> AsyncIterator[Members]:
    members = Members()
    yield members
    await members.close()
