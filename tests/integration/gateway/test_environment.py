"""A kernel's environment is its own request's and the operator's, never the gateway's and never anybody else's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.integration.gateway.driver import Driver

SHOW = "import os, json; print(json.dumps(dict(os.environ)))"
SECRETS = {"GATEWAY_PASSWORD": "hunter2-of-the-gateway"}


def environment_of(gateway: Driver, kernel_id: str) -> dict[str, str]:
    shown: dict[str, str] = json.loads(gateway.execute(kernel_id, SHOW))
    return shown


def test_what_a_kernel_gets(new_gateway: Callable[..., Driver]) -> None:
    options = ["--EgKnativeApp.client_envs=['ALLOWED']", "--EgKnativeApp.inherited_envs=['INHERITED']"]
    gateway = new_gateway(options=options, INHERITED="from the operator", **SECRETS)
    gateway.start()
    kernel_id = gateway.launch(KERNEL_X="x", ALLOWED="yes", NOT_ALLOWED="no", KERNEL_USERNAME="alice", EG_AUTH_TOKEN="other")
    seen = environment_of(gateway, kernel_id)
    assert seen["KERNEL_X"] == "x"
    assert seen["ALLOWED"] == "yes"
    assert seen["INHERITED"] == "from the operator"
    assert seen["KERNEL_USERNAME"] == "alice"
    assert seen["KERNEL_ID"] == kernel_id
    assert seen["KERNEL_GATEWAY"] == "1"
    assert seen["KERNEL_LANGUAGE"] == "python"
    assert not {"NOT_ALLOWED", "GATEWAY_PASSWORD", "EG_AUTH_TOKEN", "EG_KNATIVE_RUN_DIRECTORY", "EG_PORT_RETRIES"} & seen.keys()
    assert gateway.token not in seen.values()


def test_overlapping_requests_do_not_see_each_other(new_gateway: Callable[..., Driver]) -> None:
    """EG's defect: a request without env that came while others were served ran with theirs, and every later one as well."""
    gateway = new_gateway(pool_size=0, **SECRETS)  # without a pool, launches overlap for long
    gateway.start()

    async def together() -> list[Any]:
        bodies: list[Any] = [
            {"env": {"KERNEL_USERNAME": "alice", "KERNEL_SECRET": "of-alice"}},
            {"env": {"KERNEL_USERNAME": "bob", "KERNEL_SECRET": "of-bob"}},
            {},
            None,
        ]
        calls = [asyncio.to_thread(gateway.call, "POST", "/api/kernels", body) for body in bodies]
        calls.append(asyncio.to_thread(gateway.call, "POST", "/api/sessions", {"path": "a.ipynb", "type": "notebook"}))
        return await asyncio.gather(*calls)

    answers = asyncio.run(together())
    assert [answer.status for answer in answers] == [201] * 5, [answer.text for answer in answers]
    ids = [answer.body["id"] for answer in answers[:4]] + [answers[4].body["kernel"]["id"]]
    late = gateway.call("POST", "/api/kernels").body["id"]
    alice, bob, *without = (environment_of(gateway, kernel_id) for kernel_id in [*ids, late])
    assert (alice["KERNEL_USERNAME"], alice["KERNEL_SECRET"]) == ("alice", "of-alice")
    assert (bob["KERNEL_USERNAME"], bob["KERNEL_SECRET"]) == ("bob", "of-bob")
    for seen in without:
        assert "KERNEL_SECRET" not in seen
        assert seen["KERNEL_USERNAME"] not in {"alice", "bob"}
        assert "GATEWAY_PASSWORD" not in seen


def test_a_foreign_kernel_gets_no_more(new_gateway: Callable[..., Driver]) -> None:
    """EG's LocalProcessProxy inherits the gateway's whole environment when the request has none."""
    gateway = new_gateway(pool_size=0, **SECRETS)
    gateway.start()
    kernel_id = gateway.call("POST", "/api/kernels", {"name": "python3"}).body["id"]
    seen = environment_of(gateway, kernel_id)
    assert "GATEWAY_PASSWORD" not in seen
    assert "EG_AUTH_TOKEN" not in seen
    assert seen["PATH"]
    assert gateway.call("POST", f"/api/kernels/{kernel_id}/restart").status == 200
    assert gateway.execute(kernel_id, "1 + 1") == "2"
    assert gateway.call("DELETE", f"/api/kernels/{kernel_id}").status == 204


def test_an_import_time_variable_is_in_time(gateway: Driver) -> None:
    kernel_id = gateway.call("POST", "/api/kernels", {"env": {"KERNEL_X": "1"}}).body["id"]
    assert gateway.get(f"/api/egknative/kernels/{kernel_id}").body["launch"]["started"] == "running"


def test_the_working_directory(gateway: Driver) -> None:
    wanted = gateway.directory / "a directory with spaces"
    wanted.mkdir(exist_ok=True)
    kernel_id = gateway.launch(KERNEL_WORKING_DIR=str(wanted))
    assert gateway.execute(kernel_id, "import os; print(os.getcwd())") == str(wanted)
    assert gateway.execute(gateway.launch(), "import os; print(os.getcwd())") == str(gateway.directory)


def test_mirroring_can_be_switched_off(new_gateway: Callable[..., Driver]) -> None:
    gateway = new_gateway(EG_MIRROR_WORKING_DIRS="False")
    gateway.start()
    kernel_id = gateway.launch(KERNEL_WORKING_DIR="/no/such/place")
    assert gateway.execute(kernel_id, "import os; print(os.getcwd())") == str(gateway.directory)
