"""Kernels of EG's own LocalProcessProxy behind the handler, in EG's own application: the relay has only the kernel manager to
ask.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from tornado.httpclient import AsyncHTTPClient

from eg_knative.gateway.channels import ChannelsHandler
from tests.integration.channels.conftest import free_ports
from tests.integration.channels.raw_client import RawClient, text_of


class Application(EnterpriseGatewayApp):  # type: ignore[misc]
    """EG with our channels handler in place of its own."""

    def _create_request_handlers(self) -> list[tuple[Any, ...]]:
        handlers: list[tuple[Any, ...]] = super()._create_request_handlers()
        return [(h[0], ChannelsHandler, *h[2:]) if h[0].endswith("/channels") else h for h in handlers]


@pytest.fixture
async def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Application]:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    level = logging.getLogger().level
    Application.clear_instance()
    app = Application.instance()
    app.initialize(
        [f"--EnterpriseGatewayApp.port={free_ports(1)[0]}", "--EnterpriseGatewayApp.port_retries=0", "--log-level=ERROR"]
    )
    yield app
    for kernel_id in list(app.kernel_manager._kernels):
        await app.kernel_manager.shutdown_kernel(kernel_id, now=True)
    relays = app.web_app.settings.get("kernel_relays")
    if relays is not None:
        await relays.close()
    app.http_server.stop()
    await app.http_server.close_all_connections()
    logging.getLogger().setLevel(level)  # EG sets the root logger's
    Application.clear_instance()


async def call(app: Application, method: str, path: str, body: Any = None) -> Any:
    response = await AsyncHTTPClient().fetch(
        f"http://127.0.0.1:{app.port}{path}",
        method=method,
        body=None if body is None else json.dumps(body),
        request_timeout=60,
    )
    return json.loads(response.body or b"null")


async def start(app: Application) -> tuple[str, RawClient]:
    # As root, EG wants to be told who the kernel is for.
    env = {"KERNEL_USERNAME": "somebody", "PATH": os.environ["PATH"]}
    kernel_id = (await call(app, "POST", "/api/kernels", {"name": "python3", "env": env}))["id"]
    client = await RawClient.open(f"ws://127.0.0.1:{app.port}/api/kernels/{kernel_id}/channels", session_id="s")
    return kernel_id, client


async def test_a_cell_a_requested_restart_and_a_crash(application: Application, caplog: pytest.LogCaptureFixture) -> None:
    kernel_id, client = await start(application)
    try:
        first = client.execute("x = 1; print(x)")
        assert text_of(await client.until_done(first), first) == "1\n"

        relay = application.web_app.settings["kernel_relays"].get(kernel_id)
        relay.kernel.restart_began()
        await call(application, "POST", f"/api/kernels/{kernel_id}/restart", {})
        relay.kernel.restart_ended()
        second = client.execute("print('x' in dir())")
        assert text_of(await client.until_done(second), second) == "False\n"
        model = await call(application, "GET", f"/api/kernels/{kernel_id}")
        assert model["connections"] == 1
        assert model["execution_state"] == "idle"

        pid = application.kernel_manager.get_kernel(kernel_id).process_proxy.local_proc.pid
        third = client.execute("import time; time.sleep(60)")
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        seen = await client.until_done(third)
        assert [m["content"]["ename"] for m in seen if m["msg_type"] == "error"] == ["KernelDied"]
        fourth = client.execute("print('up again')")
        assert text_of(await client.until_done(fourth, 60), fourth) == "up again\n", "on the same WebSocket"
    finally:
        client.writer.close()
    assert not [record for record in caplog.records if record.exc_info]
