"""The gateway goes away and comes back while a notebook is open: nothing is lost and nobody has to click."""

from __future__ import annotations

import signal
import time

import pytest

from tests.browser.driver import LabPage
from tests.servers import KERNELSPEC, Gateway, Lab


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_an_open_notebook_goes_on_after_the_gateway_was(number: signal.Signals, tab: LabPage, lab: Lab, gateway: Gateway) -> None:
    name = f"{number.name.lower()}.ipynb"
    cells = ["x = {'kept': 41}\nprint('set')", "x['kept'] += 1\nprint(x)"]
    lab.write_notebook(name, cells=cells, kernelspec=KERNELSPEC)
    tab.open_notebook(name)
    tab.wait_idle()
    tab.run_and_wait(0, "set")
    before = tab.kernel()["id"]

    gateway.stop(number)
    gateway.start()

    assert before in [kernel["id"] for kernel in gateway.request("GET", "/api/kernels")]
    _wait_until_connected(gateway, before)
    tab.wait_idle()
    tab.run_and_wait(1, "{'kept': 42}")
    assert tab.kernel()["id"] == before
    assert tab.dialogs() == 0


def _wait_until_connected(gateway: Gateway, kernel_id: str) -> None:
    """The notebook server tries again after a pause of its own, and loses what the page sends in between; it may come more than
    once. So it has come back when it stays."""
    deadline = time.monotonic() + 20
    stays = 0
    while stays < 20:
        connected = gateway.request("GET", f"/api/kernels/{kernel_id}")["connections"]
        stays = stays + 1 if connected else 0
        assert time.monotonic() < deadline, "JupyterLab did not come back to the gateway"
        time.sleep(0.05)
