"""Drives a real JupyterLab page in Chromium, and measures in the page what a person waits for.

Used by the browser tests and by `scripts/bench lab`. Times are taken inside the page with `performance.now()`, so that neither
Playwright nor this process is part of a figure. Only what a person could do is done: keys, clicks and the menu's own commands.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import Lab

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
REMEDY = "Chromium is missing. Debian and Ubuntu: apt-get install chromium"

OBSERVE = """
(() => {
  const seen = { statuses: [], connections: [] };
  window.egKnative = seen;
  let context;
  const note = () => {
    const kernel = context.session?.kernel;
    if (!kernel) return;
    if (seen.statuses.at(-1) !== kernel.status) seen.statuses.push(kernel.status);
    if (seen.connections.at(-1) !== kernel.connectionStatus) seen.connections.push(kernel.connectionStatus);
    const ready = kernel.status === 'idle' && kernel.connectionStatus === 'connected';
    if (seen.idle === undefined && ready) seen.idle = performance.now();
  };
  const look = () => {
    if (seen.drawn === undefined && document.querySelector('.jp-Notebook .jp-Cell')) seen.drawn = performance.now();
    const current = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    if (current && current !== context) {
      context = current;
      context.statusChanged.connect(note);
      context.connectionStatusChanged.connect(note);
    }
    if (context) note();
  };
  setInterval(look, 4);
})();
"""

RUN_AND_WAIT = """
async ({ index, text, timeout }) => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cell = panel.content.widgets[index];
  panel.content.activeCellIndex = index;
  const has = () => cell.outputArea.node.textContent.includes(text);
  if (has()) throw new Error('the text is on the page already');
  return await new Promise((resolve, reject) => {
    const began = performance.now();
    const watcher = new MutationObserver(() => { if (has()) { watcher.disconnect(); resolve(performance.now() - began); } });
    watcher.observe(cell.outputArea.node, { childList: true, subtree: true, characterData: true });
    setTimeout(() => { watcher.disconnect(); reject(new Error('no output in time')); }, timeout);
    window.jupyterapp.commands.execute('notebook:run-cell');
  });
}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opening:
    """How long a person waited after the page was drawn. Seconds."""

    drawn_after: float
    idle_after_drawn: float
    statuses: tuple[str, ...]
    connections: tuple[str, ...]


def chromium() -> str | None:
    """Path of an installed Chromium, or None."""
    return next((found for name in CHROMIUM if (found := shutil.which(name))), None)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """One headless Chromium with a fresh profile."""
    path = chromium()
    if path is None:
        raise RuntimeError(REMEDY)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


class LabPage:
    """One tab with JupyterLab. `timeout`: seconds that any wait may take."""

    def __init__(self, *, browser: Browser, lab: Lab, timeout: float = 60.0) -> None:
        self.lab = lab
        self.timeout = timeout
        self.context = browser.new_context(viewport={"width": 1280, "height": 800})
        self.page: Page = self.context.new_page()
        self.console: list[str] = []
        self._prepare()

    def _prepare(self) -> None:
        self.page.set_default_timeout(self.timeout * 1000)
        self.page.add_init_script(OBSERVE)
        self.page.on("console", lambda message: self.console.append(f"{message.type}: {message.text}"))

    def close(self) -> None:
        """Close the browser context, as quitting the browser does."""
        self.context.close()

    def close_tab(self) -> None:
        self.page.close()

    def new_tab(self) -> None:
        """Another tab of the same browser, in place of the one that was closed."""
        self.page = self.context.new_page()
        self._prepare()

    def open_lab(self) -> None:
        self.page.goto(f"{self.lab.url}/lab?reset&token={quote(self.lab.token)}")
        self.page.wait_for_selector(".jp-LauncherCard")

    def open_notebook(self, name: str) -> None:
        """Navigate to a notebook and wait until its cells are drawn."""
        self.page.goto(f"{self.lab.url}/lab/tree/{quote(name)}?reset&token={quote(self.lab.token)}")
        self.page.wait_for_function("() => window.egKnative?.drawn !== undefined")

    def wait_idle(self) -> None:
        """Until the kernel of the current notebook is connected and idle."""
        self.page.wait_for_function(
            """() => { const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
                       return !!kernel && kernel.status === 'idle' && kernel.connectionStatus === 'connected'; }"""
        )

    def opening(self) -> Opening:
        """Wait until the kernel is idle and say how long that took."""
        self.page.wait_for_function("() => window.egKnative?.idle !== undefined")
        seen: dict[str, Any] = self.page.evaluate("() => ({ ...window.egKnative })")
        return Opening(
            drawn_after=seen["drawn"] / 1000,
            idle_after_drawn=max(0.0, seen["idle"] - seen["drawn"]) / 1000,
            statuses=tuple(seen["statuses"]),
            connections=tuple(seen["connections"]),
        )

    def kernel(self) -> dict[str, Any]:
        """Id, name, status and connection status of the current notebook's kernel; empty without one."""
        found: dict[str, Any] = self.page.evaluate(
            """() => { const kernel = window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel;
                       return kernel ? { id: kernel.id, name: kernel.name, status: kernel.status,
                                         connection: kernel.connectionStatus } : {}; }"""
        )
        return found

    def run_and_wait(self, index: int, text: str, *, timeout: float | None = None) -> float:
        """Run one cell and wait until `text` is in its output on the page. Seconds from the command to the text."""
        limit = (timeout or self.timeout) * 1000
        return float(self.page.evaluate(RUN_AND_WAIT, {"index": index, "text": text, "timeout": limit})) / 1000

    def press_run(self, index: int) -> None:
        """Click into a cell and press Shift+Enter, as a person does; does not wait."""
        self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")

    def wait_output(self, index: int, text: str) -> None:
        self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea").get_by_text(text).first.wait_for()

    def output(self, index: int) -> str:
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".jp-OutputArea").inner_text()

    def wait_busy(self) -> None:
        self.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'busy'",
        )

    def write_cell(self, index: int, source: str) -> None:
        """Replace a cell's text by typing it."""
        self.page.locator(".jp-Notebook .jp-Cell").nth(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(source)

    def command(self, name: str) -> None:
        """One command of the menus, not waited for: it may open a dialog."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", name)

    def accept_dialog(self) -> None:
        self.page.locator(".jp-Dialog .jp-mod-accept").last.click()

    def dialogs(self) -> int:
        return self.page.locator(".jp-Dialog").count()

    def save(self) -> None:
        """Save the notebook, so that closing the tab asks nothing."""
        self.command("docmanager:save")
        self.page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.content.model.dirty")

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path)
        print(f"screenshot: {path}")
