from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from eg_knative.errors import AlreadyClaimedError, LauncherError, LauncherRefusedError, LauncherUnreachableError
from eg_knative.wire.control import ClaimRequest, LauncherClient
from tests.unit.wire import documents
from tests.unit.wire.servers import answer, fake_launcher, saying

CLAIM = ClaimRequest(
    claim_id="c1", kernel_id="k1", kernel_name="python", username="ada", env={"A": "secret-value"}, working_directory="/w",
    attributes={"x": [1]},
)  # fmt: skip


def told(document: Any, status: bytes = b"200 OK") -> bytes:
    return answer(json.dumps(document).encode(), status=status)


async def test_every_call_is_what_the_protocol_says(tmp_path: Path) -> None:
    async with fake_launcher(tmp_path, saying(told({}))) as fake:
        client = LauncherClient(address=fake.address, token="the-token")

        async def asked(answer_document: Any, call: Any) -> tuple[str, Any]:
            fake.script = saying(told(answer_document))
            await call
            head, _, body = fake.requests.pop().partition(b"\r\n\r\n")
            assert b"Authorization: Bearer the-token" in head
            return head.split(b" HTTP")[0].decode(), json.loads(body) if body else None

        assert await asked(documents.HEALTH, client.health()) == ("GET /v1/health", None)
        assert await asked(documents.CONNECTION_ANSWER, client.connection()) == ("GET /v1/connection", None)
        assert await asked(documents.USAGE, client.usage()) == ("GET /v1/usage", None)
        assert await asked(documents.RESTARTED, client.restart(timeout=5)) == ("POST /v1/restart", {})
        assert await asked({}, client.interrupt()) == ("POST /v1/interrupt", {})
        assert await asked({}, client.signal(15)) == ("POST /v1/signal", {"signal": 15})
        assert await asked({}, client.shutdown(grace_seconds=2.5)) == ("POST /v1/shutdown", {"grace_seconds": 2.5})
        assert await asked(documents.PROMOTION, client.promote(CLAIM, timeout=5)) == (
            "POST /v1/promote",
            {
                "claim_id": "c1",
                "kernel_id": "k1",
                "kernel_name": "python",
                "username": "ada",
                "env": {"A": "secret-value"},
                "working_directory": "/w",
                "attributes": {"x": [1]},
            },
        )
        await client.close()
    assert "secret-value" not in repr(CLAIM)
    assert "the-token" not in repr(client)


@pytest.mark.parametrize(
    ("status", "document", "error", "reason"),
    [
        (b"401 No", {"reason": "unauthorized", "message": "No."}, LauncherRefusedError, "unauthorized"),
        (b"409 No", {"reason": "already_claimed", "message": "No."}, AlreadyClaimedError, "already_claimed"),
        (b"409 No", {"reason": "not_ready", "message": None}, LauncherRefusedError, "not_ready"),
        (b"422 No", {"reason": "bad_environment", "message": "No.", "field": "env.A"}, LauncherRefusedError, "bad_environment"),
        (
            b"500 No",
            {"reason": "kernel_failed", "message": "No.", "exit": {"message": "7."}},
            LauncherRefusedError,
            "kernel_failed",
        ),
        (b"500 No", {"reason": "Not A Word"}, LauncherError, "launcher_error"),
        (b"500 No", ["nonsense"], LauncherError, "launcher_error"),
        (b"302 Over there", {}, LauncherError, "launcher_error"),
    ],
)
async def test_refusals_keep_their_word(
    tmp_path: Path, status: bytes, document: Any, error: type[LauncherError], reason: str
) -> None:
    async with fake_launcher(tmp_path, saying(told(document, status))) as fake:
        with pytest.raises(error) as refusal:
            await LauncherClient(address=fake.address, token="t").connection()
    assert type(refusal.value) is error
    assert refusal.value.reason == reason
    if isinstance(refusal.value, LauncherRefusedError):
        assert refusal.value.status == int(status[:3])
        assert refusal.value.field == document.get("field")
        assert refusal.value.message.endswith(document.get("exit", {"message": ""})["message"])


async def test_another_version_of_the_protocol_is_refused(tmp_path: Path) -> None:
    async with fake_launcher(tmp_path, saying(told(documents.HEALTH | {"protocol": 2}))) as fake:
        with pytest.raises(LauncherError, match="version 2"):
            await LauncherClient(address=fake.address, token="t").health()


async def test_silence_ends_with_the_time_limit(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def silent(_: bytes, __: asyncio.StreamWriter) -> None:
        await released.wait()

    async with fake_launcher(tmp_path, silent) as fake:
        with pytest.raises(LauncherUnreachableError, match=r"within 0.05 s"):
            await LauncherClient(address=fake.address, token="t").health(timeout=0.05)
        released.set()


async def test_too_large_a_request_is_not_sent(tmp_path: Path) -> None:
    async with fake_launcher(tmp_path, saying(told({}))) as fake:
        claim = ClaimRequest(**{**vars(CLAIM), "env": {"A": "x" * 3_000_000}})
        with pytest.raises(LauncherRefusedError) as refusal:
            await LauncherClient(address=fake.address, token="t").promote(claim, timeout=5)
        assert refusal.value.reason == "body_too_large"
        assert fake.requests == []


async def test_a_cancelled_call_is_cancelled(tmp_path: Path) -> None:
    """Also in the very turn of the loop in which its answer arrives."""
    async with fake_launcher(tmp_path, saying(told(documents.HEALTH))) as fake:
        client = LauncherClient(address=fake.address, token="t")
        cancelled = 0
        for turns in range(30):
            call = asyncio.create_task(client.health())
            for _ in range(turns):
                await asyncio.sleep(0)
            if call.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await call
                cancelled += 1
        assert cancelled > 3
