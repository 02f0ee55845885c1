"""The launcher's protocol from our side: one method for each resource of docs/launcher-protocol.md.

It exists so that pool and substrates speak in frozen data and in this project's errors, never in HTTP. Each call
has a connection and a time limit of its own; nothing is retried here, because only the caller knows what a
repetition means. A client holds no resource between calls. Tokens and keys are in no message.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from eg_knative.errors import AlreadyClaimedError, LauncherError, LauncherRefusedError, LauncherUnreachableError
from eg_knative.wire import messages
from eg_knative.wire.deadline import within
from eg_knative.wire.fields import Fields, parse
from eg_knative.wire.http import Address, Answer, Exchange, compose
from eg_knative.wire.messages import (
    PROTOCOL,
    Beat,
    ClaimRecord,
    ClaimRequest,
    ConnectionAnswer,
    ConnectionInfo,
    Health,
    KernelExit,
    Promotion,
    Restarted,
    Usage,
)

__all__ = [
    "PROTOCOL",
    "Beat",
    "ClaimRecord",
    "ClaimRequest",
    "ConnectionAnswer",
    "ConnectionInfo",
    "Health",
    "KernelExit",
    "LauncherClient",
    "Promotion",
    "Restarted",
    "Usage",
]

REQUEST_LIMIT = 2 * 1024 * 1024
"""The largest body that a launcher reads, in bytes (docs/launcher-protocol.md)."""


class LauncherClient:
    """Calls to one launcher. Safe to use from several tasks at once.

    All methods raise LauncherUnreachableError (nobody, or not in time), LauncherRefusedError (a well-formed
    refusal, with its reason word, status and field) and LauncherError (an answer that cannot be used). Timeouts are
    in seconds.
    """

    def __init__(self, *, address: str, token: str) -> None:
        self.address = address
        self._address = Address.parse(address)
        self._token = token

    def __repr__(self) -> str:
        return f"LauncherClient({self.address!r})"

    async def health(self, *, timeout: float = 5.0) -> Health:
        """What state the launcher is in. Raises LauncherError when it speaks another version of the protocol."""
        answer = messages.health(await self._get("/v1/health", timeout))
        if answer.protocol != PROTOCOL:
            raise LauncherError(
                f"The launcher speaks version {answer.protocol} of the protocol, this gateway version {PROTOCOL}."
            )
        return answer

    async def connection(self, *, timeout: float = 5.0) -> ConnectionAnswer:
        """How to reach the kernel, and whose it is. Refused with `not_ready` before there is a kernel."""
        return messages.connection_answer(await self._get("/v1/connection", timeout), ip=self._address.ip)

    async def promote(self, claim: ClaimRequest, *, timeout: float) -> Promotion:
        """Give the member its identity; may be repeated with the same claim id. Raises AlreadyClaimedError."""
        body = {field.name: getattr(claim, field.name) for field in dataclasses.fields(claim)}
        body |= {"env": dict(claim.env), "attributes": dict(claim.attributes)}
        answer = await self._post("/v1/promote", body, timeout)
        return messages.promotion(answer, ip=self._address.ip, claim_id=claim.claim_id)

    async def restart(self, *, timeout: float) -> Restarted:
        """Restart the kernel in place and wait until the new one is bound."""
        return messages.restarted(await self._post("/v1/restart", {}, timeout), ip=self._address.ip)

    async def interrupt(self, *, timeout: float = 5.0) -> None:
        """Interrupt the kernel in the way that its kernelspec names."""
        await self._post("/v1/interrupt", {}, timeout)

    async def signal(self, signum: int, *, timeout: float = 5.0) -> None:
        """Send a signal from 1 to 31 to the kernel's process group."""
        await self._post("/v1/signal", {"signal": int(signum)}, timeout)

    async def shutdown(self, *, grace_seconds: float, timeout: float = 5.0) -> None:
        """Ask the launcher to end its kernel and itself; returns when it has agreed, not when it has ended."""
        await self._post("/v1/shutdown", {"grace_seconds": grace_seconds}, timeout)

    async def usage(self, *, timeout: float = 5.0) -> Usage:
        """What the kernel's process tree uses now."""
        return messages.usage(await self._get("/v1/usage", timeout))

    async def beats(self, *, interval: float, silence: float) -> AsyncGenerator[Beat, None]:
        """The stream of beats until it ends; see `Hold`, which keeps one open. Close it with `contextlib.aclosing`.

        `interval`: seconds between beats. `silence`: after so many seconds without a beat LauncherUnreachableError
        is raised.
        """
        exchange = Exchange(address=self._address, request=self._request("GET", f"/v1/beats?interval={interval:g}", None))
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(exchange.close)
            await _in_time(exchange.open(), silence)
            if exchange.status != 200:
                raise _refusal(Answer(exchange.status, await _in_time(exchange.body(), silence)))
            lines = await stack.enter_async_context(contextlib.aclosing(exchange.lines()))
            while True:
                try:
                    line = await _in_time(_next(lines), silence)
                except StopAsyncIteration:
                    return
                if line.strip():
                    yield messages.beat(parse(line, where="beat"))

    async def close(self) -> None:
        """Nothing is kept between calls today; call it all the same, for a later transport that keeps something."""

    async def _get(self, resource: str, timeout: float) -> Fields:
        return await self._call("GET", resource, None, timeout)

    async def _post(self, resource: str, body: Mapping[str, Any], timeout: float) -> Fields:
        encoded = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        if len(encoded) > REQUEST_LIMIT:
            raise LauncherRefusedError(
                f"The request is larger than the {REQUEST_LIMIT} bytes that a launcher reads.",
                reason="body_too_large",
                status=413,
            )
        return await self._call("POST", resource, encoded, timeout)

    async def _call(self, method: str, resource: str, body: bytes | None, timeout: float) -> Fields:
        answer = await _in_time(self._exchange(self._request(method, resource, body)), timeout)
        if not 200 <= answer.status < 300:
            raise _refusal(answer)
        return parse(answer.body, where=f"answer to {resource}")

    def _request(self, method: str, resource: str, body: bytes | None) -> bytes:
        return compose(method=method, resource=resource, token=self._token, body=body)

    async def _exchange(self, request: bytes) -> Answer:
        async with Exchange(address=self._address, request=request) as exchange:
            return Answer(exchange.status, await exchange.body())


async def _next(lines: AsyncGenerator[bytes, None]) -> bytes:
    return await lines.__anext__()


async def _in_time(work: Any, seconds: float) -> Any:
    try:
        return await within(seconds, work)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise LauncherUnreachableError(f"The launcher did not answer within {seconds:g} s.") from error


def _refusal(answer: Answer) -> LauncherError:
    try:
        fields = parse(answer.body, where="refusal")
        reason = fields.word("reason")
        message = fields.sentence("message") or "The launcher gave no message."
        field = fields.optional("field", lambda key: fields.text(key, limit=256))
        ended = fields.optional("exit", lambda key: fields.inner(key).sentence("message"))
    except LauncherError:
        return LauncherError(f"The launcher answered with status {answer.status} and no usable reason.")
    if reason == "already_claimed":
        return AlreadyClaimedError(message)
    if ended and ended not in message:
        message = f"{message} {ended}"
    return LauncherRefusedError(message, reason=reason, status=answer.status, field=field)
