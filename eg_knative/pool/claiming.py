"""Claims: a ready member and one promotion, or else a normal launch.

The hot path is memory and one HTTP call: pop the member that waits longest, promote it, change the key of its channels.
Everything else is what happens when that cannot be had:

- a member that cannot be promoted (unreachable, dying, somebody else's) is given up and the next one tried, a few
  times;
- a refusal that is the request's fault (no such directory, bad environment) leaves the member ready and is raised as
  BadRequestError;
- without a ready member the claim *reserves the oldest booting one* and waits for it, since a start of its own could
  only be ready later. When that boot fails, or takes three times what boots take, the claim starts a member of its own;
  so it does when nothing boots;
- a start that finds the substrate full first ends a spare ready member there, for a person goes before a spare.

Whatever ends a claim (error, time, cancellation) ends what was made for it; a reserved boot goes back to its pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Literal

from eg_knative.errors import (
    AlreadyClaimedError,
    BadRequestError,
    DuplicateKernelError,
    EgKnativeError,
    LauncherError,
    LauncherRefusedError,
    LaunchError,
    LauncherUnreachableError,
    LaunchTimeoutError,
)
from eg_knative.pool.claims import ClaimedKernel, LaunchReport
from eg_knative.pool.events import MissReason, PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.keeper import Clock, Keeper
from eg_knative.pool.member import MemberState, PoolMember
from eg_knative.pool.roster import KernelspecPool, Roster
from eg_knative.specification import KernelSpecification
from eg_knative.substrates.contract import Substrate
from eg_knative.wire.control import ClaimRecord, ClaimRequest, Promotion

PROMOTE_TIMEOUT_SECONDS = 5.0
"""A running kernel takes its identity within milliseconds; a launcher that says nothing for so long is given up."""

READY_MEMBERS_TRIED = 4
SHORTEST_PATIENCE_SECONDS = 3.0
CLEAN_UP_SECONDS = 5.0
"""A failed launch waits so long for what it made to be gone before it is reported; the cleaning goes on in any case."""

USERS_FAULT = frozenset({"bad_request", "body_too_large", "working_directory_missing", "bad_environment", "bad_kernel_id"})
"""Refusals that leave a member as it was (docs/launcher-protocol.md, 400, 413 and 422)."""

KERNELS_FAULT = frozenset({"kernel_failed", "kernel_timeout"})


class Claimer:
    """Serves claims. `kernels` is the table of claimed kernels by kernel id, which it fills."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        roster: Roster,
        keeper: Keeper,
        expectations: Expectations,
        kernels: dict[str, ClaimedKernel],
        clock: Clock,
        concurrent_launches: int,
        size: int,
        emit: Callable[[PoolEvent], None],
        changed: Callable[[], None],
        prepares: bool,
    ) -> None:
        self._substrates = substrates
        self._roster = roster
        self._keeper = keeper
        self._expectations = expectations
        self._kernels = kernels
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrent_launches)
        self._size = size
        self._emit = emit
        self._changed = changed
        self._prepares = prepares
        self._under_way: set[str] = set()
        self.closed = True
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
            claim = _Claim(request=request, specification=specification, began=began, timeout=timeout)
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
        if self.closed:
            raise LaunchError("The gateway is stopping and starts no kernels. Try again in a moment.", reason="stopping")
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

    async def _serve(self, pool: KernelspecPool, claim: _Claim) -> tuple[PoolMember, Promotion, MissReason | None]:
        for _ in range(READY_MEMBERS_TRIED):
            entry = pool.pop(claim.specification.digest)
            if entry is None:
                break
            claim.phases["queue"] = self._clock() - claim.began
            promotion = await self._promote(pool, claim, entry)
            if promotion is not None:
                return entry, promotion, None
        miss = self._miss_reason(pool, claim.specification)
        entry = await self._wait_for_boot(pool, claim) or await self._launch(claim)
        claim.phases["queue"] = self._clock() - claim.began
        promotion = await self._promote(pool, claim, entry)
        if promotion is None:
            raise LaunchError(f"The kernel {pool.name} started, and was lost before it could be handed over. Try again.")
        return entry, promotion, miss

    def _miss_reason(self, pool: KernelspecPool, specification: KernelSpecification) -> MissReason:
        """Why no ready member is there, said before anything is done about it; the first that holds."""
        if pool.bounds(size=self._size).ceiling == 0:
            return "disabled"
        if pool.specification is not None and pool.specification.digest != specification.digest:
            return "spec-changed"
        if pool.drained_by is not None:
            return pool.drained_by
        if pool.booting():
            return "booting"
        if pool.allocation.limited_by is not None and pool.allocation.wanted == 0:
            return "quota"
        return "empty"

    # -- promotion ------------------------------------------------------------------------------------------------

    async def _promote(self, pool: KernelspecPool, claim: _Claim, entry: PoolMember) -> Promotion | None:
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
            if self._prepares:
                await self._prepare(claim, entry, promotion)
        except LauncherRefusedError as error:
            if error.reason in USERS_FAULT:
                if entry.state is MemberState.READY and not entry.for_claim:
                    pool.put_back(entry)
                else:
                    await self._removed(entry, error.message)
                raise BadRequestError(error.message, field=error.field, reason=error.reason) from error
            self._keeper.retire(entry, reason="failed", message=error.message)
            if error.reason in KERNELS_FAULT:
                await self._removed(entry, error.message)
                raise LaunchError(f"The kernel {pool.name} could not be started: {error.message}", reason=error.reason) from error
        except AlreadyClaimedError:
            if entry.state is MemberState.READY:
                self._keeper.release(entry)
        except LauncherError as error:
            self._keeper.retire(entry, reason="failed", message=error.message)
            if not quick and isinstance(error, LauncherUnreachableError) and claim.remaining(self._clock()) <= 0:
                await self._removed(entry, error.message)
                raise claim.too_late() from error
        except LaunchError as error:
            await self._removed(entry, error.message)
            raise
        except BaseException:
            self._keeper.retire(entry, reason="cancelled")
            raise
        else:
            if entry.state is MemberState.READY and not self.closed:
                return promotion
            self._keeper.retire(entry, reason="cancelled")
            if self.closed:
                raise LaunchError("The gateway is stopping and starts no kernels. Try again in a moment.", reason="stopping")
        return None

    async def _removed(self, entry: PoolMember, message: str) -> None:
        """Retire a member and wait, for a bounded time, until its last trace is gone."""
        await asyncio.wait({self._keeper.retire(entry, reason="failed", message=message)}, timeout=CLEAN_UP_SECONDS)

    async def _prepare(self, claim: _Claim, entry: PoolMember, promotion: Promotion) -> None:
        """Channels of a kernel that went on running get the new key; those of a new process are made anew."""
        began = self._clock()
        if entry.channels is not None and claim.had_kernel and promotion.started == "running":
            entry.channels.rekey(promotion.connection)
        else:
            await self._keeper.prepare(entry, promotion.connection, timeout=claim.remaining(began))
        claim.phases["prepare"] = self._clock() - began

    def _hand_over(
        self, pool: KernelspecPool, claim: _Claim, entry: PoolMember, promotion: Promotion, miss: MissReason | None
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
            remove=self._keeper.remove,
        )
        kernel.channels, entry.channels = entry.channels, None
        entry.kernel = kernel
        self._kernels[request.kernel_id] = kernel
        pool.back_off.settled()
        if miss is None:
            pool.hits += 1
        else:
            pool.misses[miss] += 1
        seconds = self._clock() - claim.began
        self._emit(
            PoolEvent(kind="claimed", kernelspec=pool.name, member=entry.name, reason=miss, seconds=seconds, phases=phases)
        )
        return kernel

    # -- normal launch --------------------------------------------------------------------------------------------

    async def _wait_for_boot(self, pool: KernelspecPool, claim: _Claim) -> PoolMember | None:
        """The oldest booting member of the pool once it is ready, reserved for this claim; None when there is none
        worth waiting for."""
        patience = max(SHORTEST_PATIENCE_SECONDS, 3 * pool.history.boot_seconds)
        entry = pool.reserve_boot(claim.specification.digest)
        if entry is None or entry.boot is None:
            return None
        now = self._clock()
        patience -= now - entry.born
        try:
            await asyncio.wait({entry.boot}, timeout=max(0.0, min(patience, claim.remaining(now))))
        except BaseException:
            if entry.state is MemberState.READY:
                pool.put_back(entry)
            entry.reserved = False
            raise
        if entry.state is MemberState.READY:
            return entry
        entry.reserved = False
        return None

    async def _launch(self, claim: _Claim) -> PoolMember:
        """Start a member for this claim alone and wait until it is ready. Raises LaunchError with everything removed."""
        await self._slot(claim)
        try:
            await self._make_room(claim.specification)
            entry = self._keeper.start(claim.specification, timeout=max(0.001, claim.remaining(self._clock())), for_claim=True)
            assert entry.boot is not None
            try:
                await asyncio.wait({entry.boot})
            except BaseException:
                self._keeper.retire(entry, reason="cancelled")
                raise
        finally:
            self._slots.release()
        if entry.state is MemberState.READY:
            return entry
        if entry.farewell is not None:
            await asyncio.wait({entry.farewell}, timeout=CLEAN_UP_SECONDS)
        raise entry.error or LaunchError(f"The start of {entry.kernelspec} was given up. Try again.", reason="stopping")

    async def _slot(self, claim: _Claim) -> None:
        """One of the places for launches that run at once. Raises LaunchTimeoutError."""
        acquiring = asyncio.ensure_future(self._slots.acquire())
        try:
            await asyncio.wait({acquiring}, timeout=max(0.0, claim.remaining(self._clock())))
            if acquiring.done():
                return
        except BaseException:
            acquiring.cancel()
            acquiring.add_done_callback(self._give_back)
            raise
        acquiring.cancel()
        acquiring.add_done_callback(self._give_back)
        raise claim.too_late()

    def _give_back(self, acquiring: asyncio.Task[Literal[True]]) -> None:
        """A place that came too late goes to the next in line."""
        if not acquiring.cancelled():
            self._slots.release()

    async def _make_room(self, specification: KernelSpecification) -> None:
        """When the substrate is full, end the spare member that is least likely to be missed."""
        substrate = self._substrates[specification.substrate]
        if substrate.room().members - self._expectations.starts(substrate.name) > 0:
            return
        now = self._clock()
        spares = [
            (pool.history.rate(now), pool.name, entry)
            for pool in self._roster.pools.values()
            for entry in pool.queue
            if entry.claimable and entry.substrate == substrate.name
        ]
        if spares:
            victim = min(spares, key=lambda spare: spare[:2])[2]
            await asyncio.wait({self._keeper.retire(victim, reason="evicted")}, timeout=CLEAN_UP_SECONDS)


class _Claim:
    """One claim while it is served: its request, its deadline, the time of each phase."""

    def __init__(self, *, request: ClaimRequest, specification: KernelSpecification, began: float, timeout: float) -> None:
        self.request = request
        self.specification = specification
        self.began = began
        self.timeout = timeout
        self.phases: dict[str, float] = {}
        self.had_kernel = False

    def remaining(self, now: float) -> float:
        return self.began + self.timeout - now

    def sets_any(self, variables: tuple[str, ...]) -> bool:
        return any(name in self.request.env for name in variables)

    def too_late(self) -> LaunchTimeoutError:
        return LaunchTimeoutError(
            f"The kernel {self.specification.name} was not ready within {self.timeout:g} s. Try again, or raise its"
            " launch_timeout_seconds."
        )
