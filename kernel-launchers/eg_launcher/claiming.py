"""The promotion: accepted once, answered the same ever after, and what it does to the kernel."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from eg_launcher import identity as identities
from eg_launcher.errors import KernelStartError, RequestError
from eg_launcher.identity import Identity
from eg_launcher.place import KernelPlace
from eg_launcher.protocol import Promotion, check_directory
from eg_launcher.status import Status
from eg_launcher.tasks import Tasks


class Claiming:
    """At most one claim in this process's life."""

    def __init__(self, *, boot_id: str, place: KernelPlace, status: Status, tasks: Tasks) -> None:
        self.promotion: Promotion | None = None
        self.claim: dict[str, Any] | None = None
        self._boot_id = boot_id
        self._place = place
        self._status = status
        self._tasks = tasks
        self._answer: asyncio.Task[dict[str, Any]] | None = None

    async def promote(self, promotion: Promotion) -> dict[str, Any]:
        """Give the member its identity. Raises RequestError."""
        if self.promotion is not None:
            if self.promotion.claim_id != promotion.claim_id or self._answer is None:
                raise RequestError(409, "already_claimed", "This member has been claimed")
            return await asyncio.shield(self._answer)
        state = self._status.state
        if state == "stopping":
            raise RequestError(409, "stopping", "This member is ending")
        if state != "ready":
            raise RequestError(409, "not_ready", f"This member is {state}")
        if promotion.working_directory is not None:
            check_directory(promotion.working_directory)
        # From here to the end of this method nothing waits before the claim is decided.
        self.promotion = promotion
        self.claim = promotion.as_claim(claimed_at=time.time())
        self._place.claimed = True
        self._status.set_state("claimed")
        self._answer = self._tasks.spawn(self._take_identity(promotion), "promotion")
        return await asyncio.shield(self._answer)

    async def _take_identity(self, promotion: Promotion) -> dict[str, Any]:
        started = time.perf_counter()
        phases: dict[str, float] = {}
        place = self._place
        async with place.lock:
            old = place.identity
            place.identity = self._identity(promotion)
            try:
                running, notice = await self._promote_running(promotion, phases)
                if not running:
                    await place.stop(ask=False)
                    phases["stopped"] = time.perf_counter() - started
                    await place.start(notice=notice)
            except KernelStartError as error:
                raise kernel_error(self._status, error) from error
            finally:
                if old.connection_file != place.identity.connection_file:
                    identities.remove(old.connection_file)
        phases["total"] = time.perf_counter() - started
        self._status.changed()
        place.prepare_spare()
        return {
            "boot_id": self._boot_id,
            "claim_id": promotion.claim_id,
            "kernel_generation": self._status.generation,
            "connection": place.connection(),
            "started": "running" if running else "fresh",
            "notice": notice,
            "phases": phases,
        }

    async def _promote_running(self, promotion: Promotion, phases: dict[str, float]) -> tuple[bool, str | None]:
        """Whether the running kernel took the identity, and if there was one that did not, why."""
        place = self._place
        if place.kernel is None:
            return False, None
        why = self._why_fresh(promotion)
        if why is not None:
            return False, why
        place.write_connection_file()
        place.open_channels()  # in libzmq's threads, beside the promotion: the first cell's status is not missed
        try:
            phases["inside"] = await place.kernel.promote(place.identity, argv=place.config.kernel.argv)
        except KernelStartError as error:
            return False, f"The running kernel did not take the identity: {error}"
        return True, None

    def _identity(self, promotion: Promotion) -> Identity:
        config = self._place.config
        directory = config.connection_directory
        return Identity(
            kernel_id=promotion.kernel_id,
            kernel_name=promotion.kernel_name or config.kernel.kernel_name,
            username=promotion.username,
            env={**config.kernel.env, **promotion.env},
            working_directory=promotion.working_directory or config.kernel.working_directory or directory,
            key=identities.new_key(),
            connection_file=os.path.join(directory, f"kernel-{promotion.kernel_id}.json"),
        )

    def _why_fresh(self, promotion: Promotion) -> str | None:
        """Why the running kernel cannot take this identity."""
        config, kernel = self._place.config.kernel, self._place.kernel
        for name in sorted(config.import_time_variables & set(promotion.env)):
            if promotion.env[name] != config.env.get(name):
                return f"{name} is read when a library is imported, so a fresh process was started with it"
        if kernel is None or not kernel.alive:
            return "The kernel that was running had ended"
        if not kernel.promotable:
            return "This kernel cannot be promoted while it runs, so a fresh process was started"
        return None


def kernel_error(status: Status, error: KernelStartError) -> RequestError:
    """Record that a kernel could not be started, and say it as the answer to a request."""
    status.record_exit(error.exit, restarted=False)
    status.set_kernel_state("dead")
    status.fail(str(error))
    http, reason = (504, "kernel_timeout") if error.timed_out else (500, "kernel_failed")
    return RequestError(http, reason, str(error), exit=status.exit)
