"""Claims: a ready member and one promotion, or else a normal launch.

The hot path is memory and one HTTP call: pop the member that waits longest, promote it, change the key of its channels.
Everything else is what happens when that cannot be had:

- a member that cannot be promoted (unreachable, dying, somebody else's: `promotion`) is given up and the next one tried,
  a few times;
- a refusal that is the request's fault (no such directory, bad environment) leaves the member ready and is raised as
  BadRequestError;
- without a ready member it waits for a boot, or starts one (`launching`).

Whatever ends a claim (error, time, cancellation) ends what was made for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

from eg_knative.errors import DuplicateKernelError, EgKnativeError, LaunchError
from eg_knative.pool.claims import ClaimedKernel, LaunchReport
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import MissReason, PoolEvent
from eg_knative.pool.launching import Launches
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.pacing import Clock
from eg_knative.pool.promotion import Promoter
from eg_knative.pool.roster import KernelspecPool, Roster
from eg_knative.pool.serving import Claim, Gate
from eg_knative.specification import KernelSpecification
from eg_knative.wire.control import ClaimRecord, ClaimRequest, Promotion

READY_MEMBERS_TRIED = 4


class Claimer:
    """Serves claims. `kernels` is the table of claimed kernels by kernel id, which it fills."""

    def __init__(
        self,
        *,
        substrates: Collection[str],
        kernels: dict[str, ClaimedKernel],
        roster: Roster,
        launches: Launches,
        promoter: Promoter,
        ending: Ending,
        gate: Gate,
        clock: Clock,
        size: int,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self._substrates = substrates
        self._kernels = kernels
        self._roster = roster
        self._launches = launches
        self._promoter = promoter
        self._ending = ending
        self._gate = gate
        self._clock = clock
        self._size = size
        self._emit = emit
        self._changed = changed
        self._under_way: set[str] = set()
        self.drained = asyncio.Event()
        """Set while no claim is under way."""
        self.drained.set()

    async def claim(self, request: ClaimRequest, *, specification: KernelSpecification, timeout: float) -> ClaimedKernel:
        """Serve one claim within `timeout` seconds; see PoolManager.claim."""
        began = self._clock()
        self._admit(request, specification)
        pool = self._roster.pool(specification.name)
        pool.history.claimed(began)
        self._under_way.add(request.kernel_id)
        self.drained.clear()
        try:
            claim = Claim(request=request, specification=specification, began=began, timeout=timeout)
            entry, promotion, miss = await self._serve(pool, claim)
            kernel = self._hand_over(pool, claim, entry, promotion, miss)
        except BaseException as error:
            reason = error.reason if isinstance(error, EgKnativeError) else "cancelled"
            self._emit(PoolEvent(kind="claim-failed", kernelspec=pool.name, reason=reason, seconds=self._clock() - began))
            raise
        finally:
            self._under_way.discard(request.kernel_id)
            if not self._under_way:
                self.drained.set()
            self._changed()
        return kernel

    def _admit(self, request: ClaimRequest, specification: KernelSpecification) -> None:
        self._gate.check()
        if request.kernel_id in self._kernels or request.kernel_id in self._under_way:
            raise DuplicateKernelError(
                f"A kernel with the id {request.kernel_id} exists. Leave KERNEL_ID out, or choose another.", field="KERNEL_ID"
            )
        if specification.substrate not in self._substrates:
            raise LaunchError(
                f"The kernelspec {specification.name} asks for the substrate {specification.substrate}, and this gateway has "
                f"{', '.join(sorted(self._substrates)) or 'none'}. Correct metadata.process_proxy.config.substrate.",
                reason="no_substrate",
            )

    async def _serve(self, pool: KernelspecPool, claim: Claim) -> tuple[PoolMember, Promotion, MissReason | None]:
        for _ in range(READY_MEMBERS_TRIED):
            entry = pool.pop(claim.specification.digest)
            if entry is None:
                break
            claim.phases["queue"] = self._clock() - claim.began
            promotion = await self._promoter.promote(pool, claim, entry)
            if promotion is not None:
                return entry, promotion, None
        miss = self._miss_reason(pool, claim.specification)
        entry = await self._launches.wait_for_boot(pool, claim) or await self._launches.launch(claim)
        claim.phases["queue"] = self._clock() - claim.began
        promotion = await self._promoter.promote(pool, claim, entry)
        if promotion is None:
            raise LaunchError(f"The kernel {pool.name} started, and was lost before it could be handed over. Try again.")
        return entry, promotion, miss

    def _miss_reason(self, pool: KernelspecPool, specification: KernelSpecification) -> MissReason:
        """Why no ready member is there, said before anything is done about it; the first that holds."""
        if pool.bounds(size=self._size).ceiling == 0:
            return "disabled"
        if pool.specification is not None and pool.specification.digest != specification.digest:
            return "spec-changed"
        if any(member.digest != specification.digest for member in pool.queue):  # the loop has not come to them yet
            return "spec-changed"
        if pool.drained_by is not None:
            return pool.drained_by
        if pool.booting():
            return "booting"
        if pool.allocation.limited_by is not None and pool.allocation.wanted == 0:
            return "quota"
        return "empty"

    def _hand_over(
        self, pool: KernelspecPool, claim: Claim, entry: PoolMember, promotion: Promotion, miss: MissReason | None
    ) -> ClaimedKernel:
        """Nothing is awaited from the accepted promotion to the end of this: a claimed member always has its kernel in
        the table."""
        assert entry.member is not None
        assert entry.client is not None
        fresh_for_variables = promotion.started == "fresh" and claim.sets_any(claim.specification.pool.import_time_variables)
        if miss is None and fresh_for_variables and claim.had_kernel:
            miss = "import-time-variable"
        request = claim.request
        phases = {**claim.phases, **{f"launcher.{name}": seconds for name, seconds in promotion.phases.items()}}
        entry.move(MemberState.CLAIMED)
        entry.connection = promotion.connection
        kernel = ClaimedKernel(
            entry=entry,
            member=entry.member,
            client=entry.client,
            claim=ClaimRecord(
                claim_id=request.claim_id,
                kernel_id=request.kernel_id,
                kernel_name=request.kernel_name,
                username=request.username,
                working_directory=request.working_directory,
                attributes=dict(request.attributes),
                claimed_at=time.time(),
            ),
            connection=promotion.connection,
            boot_id=promotion.boot_id,
            kernel_generation=promotion.kernel_generation,
            launch=LaunchReport(
                hit=miss is None,
                miss_reason=miss,
                started=promotion.started,
                notice=promotion.notice or entry.member.notice,
                phases=phases,
                boot_phases=dict(entry.phases),
                at=time.time(),
            ),
            remove=self._ending.remove,
        )
        kernel.channels, entry.channels = entry.channels, None
        entry.kernel = kernel
        self._kernels[request.kernel_id] = kernel
        pool.back_off.settled()
        if miss is None:
            pool.hits += 1
            pool.hole_since = self._clock() if pool.hole_since is None else pool.hole_since
        else:
            pool.misses[miss] += 1
        seconds = self._clock() - claim.began
        self._emit(
            PoolEvent(kind="claimed", kernelspec=pool.name, member=entry.name, reason=miss, seconds=seconds, phases=phases)
        )
        return kernel
