"""What a pool is made of, and which part knows which.

It exists so that a part that needs another one changes this list alone; the pool's beginning and end are the manager's.
It starts nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from eg_knative.pool.adoption import Adopter
from eg_knative.pool.boots import Boots
from eg_knative.pool.claiming import Claimer
from eg_knative.pool.claims import ClaimedKernel
from eg_knative.pool.ending import Ending
from eg_knative.pool.events import PoolEvent
from eg_knative.pool.expectations import Expectations
from eg_knative.pool.hearing import ClientFactory, Hearing, HoldFactory
from eg_knative.pool.launching import Launches
from eg_knative.pool.loop import PoolLoop
from eg_knative.pool.pacing import Clock
from eg_knative.pool.preparing import Prepare, Preparer
from eg_knative.pool.promotion import Promoter
from eg_knative.pool.roster import Roster
from eg_knative.pool.serving import Gate
from eg_knative.settings import Settings
from eg_knative.substrates.contract import Substrate
from eg_knative.tasks import OwnedTasks


class PoolParts:
    """The parts of one pool, not yet begun. `emit` gets the pool's events; `wake` is set when the loop should look again."""

    def __init__(
        self,
        *,
        substrates: Mapping[str, Substrate],
        settings: Settings,
        prepare: Prepare | None,
        client_factory: ClientFactory,
        hold_factory: HoldFactory,
        clock: Clock,
        wall: Clock,
        emit: Callable[[PoolEvent], None],
        wake: asyncio.Event,
    ) -> None:
        pool = settings.pool
        self.tasks = OwnedTasks()
        self.gate = Gate()
        self.roster = Roster(clock=clock)
        self.expectations = Expectations(timeout_seconds=pool.expectation_timeout_seconds, clock=clock)
        self.kernels: dict[str, ClaimedKernel] = {}
        preparer = Preparer(prepare=prepare)
        self.ending = Ending(
            substrates=substrates,
            roster=self.roster,
            kernels=self.kernels,
            expectations=self.expectations,
            tasks=self.tasks,
            emit=emit,
            changed=wake.set,
        )
        self.hearing = Hearing(
            roster=self.roster,
            expectations=self.expectations,
            ending=self.ending,
            clock=clock,
            client_factory=client_factory,
            hold_factory=hold_factory,
            beat_interval=settings.beat_interval_seconds,
            emit=emit,
            changed=wake.set,
        )
        boots = Boots(
            substrates=substrates,
            roster=self.roster,
            expectations=self.expectations,
            tasks=self.tasks,
            ending=self.ending,
            hearing=self.hearing,
            preparer=preparer,
            clock=clock,
            emit=emit,
            changed=wake.set,
        )
        self.claimer = Claimer(
            substrates=substrates,
            kernels=self.kernels,
            roster=self.roster,
            launches=Launches(
                substrates=substrates,
                roster=self.roster,
                expectations=self.expectations,
                boots=boots,
                ending=self.ending,
                gate=self.gate,
                clock=clock,
                concurrent_launches=pool.concurrent_launches,
            ),
            promoter=Promoter(ending=self.ending, preparer=preparer, gate=self.gate, clock=clock),
            ending=self.ending,
            gate=self.gate,
            clock=clock,
            size=pool.size,
            emit=emit,
            changed=wake.set,
        )
        self.adopter = Adopter(
            roster=self.roster,
            boots=boots,
            hearing=self.hearing,
            ending=self.ending,
            preparer=preparer,
            kernels=self.kernels,
            clock=clock,
            wall=wall,
            boot_timeout=pool.boot_timeout_seconds,
            emit=emit,
        )
        self.loop = PoolLoop(
            substrates=substrates,
            settings=pool,
            roster=self.roster,
            expectations=self.expectations,
            boots=boots,
            ending=self.ending,
            clock=clock,
            wake=wake,
        )
