"""Chromium, and one gateway with one JupyterLab for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import driver
from tests.servers import ROOT, Gateway, Lab, closing, lab_python

SCREENSHOTS = ROOT / "results" / "browser"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if driver.chromium() is None:
        pytest.skip(driver.REMEDY)
    with driver.browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    return Gateway(directory=tmp_path_factory.mktemp("gateway"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, gateway: Gateway) -> Iterator[Lab]:
    if lab_python() is None:
        pytest.skip("JupyterLab's environment .venv-lab is missing. Run: scripts/test browser")
    lab = Lab(directory=tmp_path_factory.mktemp("lab"), gateway=gateway)
    with closing(gateway, lab):
        yield lab


@pytest.fixture
def tab(chromium: Browser, lab: Lab, request: pytest.FixtureRequest) -> Iterator[driver.LabPage]:
    """One JupyterLab page. When the test ends, however it ends, its picture is kept and its kernels are shut down."""
    page = driver.LabPage(browser=chromium, lab=lab, timeout=30)
    try:
        yield page
    finally:
        if not page.page.is_closed():
            page.screenshot(_picture(request))
        print("\n".join(page.console[-20:]))
        page.close()
        for session in lab.request("GET", "/api/sessions"):
            lab.request("DELETE", f"/api/sessions/{session['id']}")


def _picture(request: pytest.FixtureRequest) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.removeprefix("test_"))
    return SCREENSHOTS / f"{name.strip('-')}.png"
