"""The promotion of one reserved member: its launcher takes the claim's identity, its channels the new key.

It exists so that what each answer of a launcher means for its member (ready as before, given up, somebody else's) is in
one place: only a refusal that is the request's fault leaves a member as it was. It does not choose members, nor try
another: None says that the claim may.
"""

from __future__ import annotations

import asyncio

from eg_knative.errors import (
    AlreadyClaimedError,
    BadRequestError,
    LauncherError,
    LauncherRefusedError,
    LaunchError,
    LauncherUnreachableError,
)
from eg_knative.pool.ending import Ending
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.preparing import Preparer
from eg_knative.pool.roster import KernelspecPool
from eg_knative.pool.serving import CLEAN_UP_SECONDS, Claim, Gate
from eg_knative.wire.control import Promotion

PROMOTE_TIMEOUT_SECONDS = 5.0
"""A running kernel takes its identity within milliseconds; a launcher that says nothing for so long is given up."""

USERS_FAULT = frozenset({"bad_request", "body_too_large", "working_directory_missing", "bad_environment", "bad_kernel_id"})
"""Refusals that leave a member as it was (docs/launcher-protocol.md, 400, 413 and 422)."""

KERNELS_FAULT = frozenset({"kernel_failed", "kernel_timeout"})


class Promoter:
    """Promotes members for claims."""

    def __init__(self, *, ending: Ending, preparer: Preparer, gate: Gate, clock: Clock) -> None:
        self._ending = ending
        self._preparer = preparer
        self._gate = gate
        self._clock = clock

    async def promote(self, pool: KernelspecPool, claim: Claim, entry: PoolMember) -> Promotion | None:
        """Promote a reserved member, and have its channels ready. None: this member cannot be had, try another.

        Raises BadRequestError (the member is ready as before), LaunchError. Every other way out retires the member.
        """
        assert entry.client is not None
        claim.had_kernel = entry.warm
        quick = claim.had_kernel and not claim.sets_any(claim.specification.pool.import_time_variables)
        remaining = claim.remaining(self._clock())
        began = self._clock()
        try:
            promotion = await entry.client.promote(
                claim.request, timeout=min(remaining, PROMOTE_TIMEOUT_SECONDS) if quick else remaining
            )
            claim.phases["promote"] = self._clock() - began
            if self._preparer.prepares:
                await self._prepare(claim, entry, promotion)
        except LauncherRefusedError as error:
            if error.reason in USERS_FAULT:
                if entry.state is MemberState.READY and not entry.for_claim:
                    pool.put_back(entry)
                else:
                    await self._removed(entry, error.message)
                raise BadRequestError(error.message, field=error.field, reason=error.reason) from error
            self._ending.retire(entry, reason="failed", message=error.message)
            if error.reason in KERNELS_FAULT:
                await self._removed(entry, error.message)
                raise LaunchError(f"The kernel {pool.name} could not be started: {error.message}", reason=error.reason) from error
        except AlreadyClaimedError:
            if entry.state is MemberState.READY:
                self._ending.release(entry)
        except LauncherError as error:
            self._ending.retire(entry, reason="failed", message=error.message)
            if not quick and isinstance(error, LauncherUnreachableError) and claim.remaining(self._clock()) <= 0:
                await self._removed(entry, error.message)
                raise claim.too_late() from error
        except LaunchError as error:
            await self._removed(entry, error.message)
            raise
        except BaseException:
            self._ending.retire(entry, reason="cancelled")
            raise
        else:
            if entry.state is MemberState.READY and not self._gate.closed:
                return promotion
            self._ending.retire(entry, reason="cancelled")
            self._gate.check()
        return None

    async def _removed(self, entry: PoolMember, message: str) -> None:
        """Retire a member and wait, for a bounded time, until its last trace is gone."""
        await asyncio.wait({self._ending.retire(entry, reason="failed", message=message)}, timeout=CLEAN_UP_SECONDS)

    async def _prepare(self, claim: Claim, entry: PoolMember, promotion: Promotion) -> None:
        """Channels of a kernel that went on running get the new key; those of a new process are made anew."""
        began = self._clock()
        if entry.channels is not None and claim.had_kernel and promotion.started == "running":
            entry.channels.rekey(promotion.connection)
        else:
            await self._preparer.prepare(entry, promotion.connection, timeout=claim.remaining(began))
        claim.phases["prepare"] = self._clock() - began
