"""What a person does with a notebook all day, in a real JupyterLab in a real browser."""

from __future__ import annotations

from tests.browser.driver import LabPage
from tests.servers import KERNELSPEC, Gateway, Lab

SOON = 5.0
"""Seconds. Stock Enterprise Gateway takes 30 to 44 here; `scripts/bench lab` measures what we take."""


def test_a_new_notebook_runs_its_first_cell(tab: LabPage, lab: Lab) -> None:
    tab.open_lab()
    card = tab.page.locator(f".jp-LauncherCard[data-category=Notebook][title*='{_display_name(lab)}']").first
    card.click()
    tab.page.wait_for_selector(".jp-Notebook .jp-Cell")
    tab.wait_idle()
    tab.write_cell(0, "sum(range(10))")
    tab.press_run(0)
    tab.wait_output(0, "45")
    assert tab.kernel()["name"] == KERNELSPEC
    assert tab.dialogs() == 0


def test_an_opened_notebook_is_idle_and_answers_at_once(tab: LabPage, lab: Lab) -> None:
    lab.write_notebook("first.ipynb", cells=["print(6 * 7)"], kernelspec=KERNELSPEC)
    tab.open_notebook("first.ipynb")
    opening = tab.opening()
    assert opening.idle_after_drawn < SOON, opening
    assert tab.run_and_wait(0, "42") < SOON


def test_a_plot_appears(tab: LabPage, lab: Lab) -> None:
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 4, 2, 8], label='warm')\nplt.legend()\nplt.show()"
    lab.write_notebook("plot.ipynb", cells=[plot], kernelspec=KERNELSPEC)
    tab.open_notebook("plot.ipynb")
    tab.wait_idle()
    tab.press_run(0)
    image = tab.page.locator(".jp-OutputArea img").first
    image.wait_for()
    assert image.evaluate("image => image.complete && image.naturalWidth") > 100
    # Its own directory is the notebook's: a plot is usually of a file beside it.
    tab.write_cell(1, "import os; print('in', os.getcwd())")
    tab.press_run(1)
    tab.wait_output(1, f"in {lab.notebooks}")


def test_interrupt_ends_an_endless_loop_and_keeps_the_variables(tab: LabPage, lab: Lab) -> None:
    cells = ["x = 'kept'\nprint('set')", "print('looping')\nwhile True: pass", "print(x + '!')"]
    lab.write_notebook("loop.ipynb", cells=cells, kernelspec=KERNELSPEC)
    tab.open_notebook("loop.ipynb")
    tab.wait_idle()
    tab.run_and_wait(0, "set")
    tab.run_and_wait(1, "looping")
    tab.wait_busy()
    tab.command("notebook:interrupt-kernel")
    tab.wait_output(1, "KeyboardInterrupt")
    tab.wait_idle()
    tab.run_and_wait(2, "kept!")


def test_restart_clears_the_variables_and_keeps_the_kernel(tab: LabPage, lab: Lab, gateway: Gateway) -> None:
    cells = ["x = 'old'\nprint('set')", "print('x' in globals())"]
    lab.write_notebook("restart.ipynb", cells=cells, kernelspec=KERNELSPEC)
    tab.open_notebook("restart.ipynb")
    tab.wait_idle()
    tab.run_and_wait(0, "set")
    before = tab.kernel()["id"]
    tab.command("notebook:restart-kernel")
    tab.accept_dialog()
    assert tab.run_and_wait(1, "False", timeout=SOON) < SOON
    tab.wait_idle()
    assert tab.kernel()["id"] == before
    assert [kernel["id"] for kernel in gateway.request("GET", "/api/kernels")] == [before]


def test_shutdown_ends_the_kernel(tab: LabPage, lab: Lab, gateway: Gateway) -> None:
    lab.write_notebook("shutdown.ipynb", cells=["print('here')"], kernelspec=KERNELSPEC)
    tab.open_notebook("shutdown.ipynb")
    tab.wait_idle()
    tab.run_and_wait(0, "here")
    tab.command("notebook:shutdown-kernel")
    tab.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel")
    assert gateway.request("GET", "/api/kernels") == []


def test_a_closed_tab_finds_its_kernel_again(tab: LabPage, lab: Lab) -> None:
    lab.write_notebook("tab.ipynb", cells=["x = 41\nprint('set')", "print(x + 1)"], kernelspec=KERNELSPEC)
    tab.open_notebook("tab.ipynb")
    tab.wait_idle()
    tab.run_and_wait(0, "set")
    before = tab.kernel()["id"]
    tab.save()
    tab.close_tab()
    tab.new_tab()
    tab.open_notebook("tab.ipynb")
    assert tab.opening().idle_after_drawn < SOON
    assert tab.kernel()["id"] == before
    tab.run_and_wait(1, "42")


def test_a_cell_that_asks_for_input_gets_it(tab: LabPage, lab: Lab) -> None:
    lab.write_notebook("input.ipynb", cells=["print('hello ' + input('who? '))"], kernelspec=KERNELSPEC)
    tab.open_notebook("input.ipynb")
    tab.wait_idle()
    tab.press_run(0)
    question = tab.page.locator("input.jp-Stdin-input")
    question.fill("world")
    question.press("Enter")
    tab.wait_output(0, "hello world")


def test_a_kernel_that_dies_in_a_cell_is_reported_and_comes_back(tab: LabPage, lab: Lab) -> None:
    lab.write_notebook("death.ipynb", cells=["import os\nos._exit(7)", "print('alive again')"], kernelspec=KERNELSPEC)
    tab.open_notebook("death.ipynb")
    tab.wait_idle()
    tab.press_run(0)
    tab.page.wait_for_function("() => window.egKnative.statuses.includes('autorestarting')")
    tab.page.get_by_text("appears to have died").wait_for()
    tab.accept_dialog()
    tab.run_and_wait(1, "alive again")


def _display_name(lab: Lab) -> str:
    name: str = lab.request("GET", "/api/kernelspecs")["kernelspecs"][KERNELSPEC]["spec"]["display_name"]
    return name
