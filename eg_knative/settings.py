"""The settings of one gateway process, as plain frozen data.

They exist apart from traitlets so that the lower floors can be built and tested without an application. The gateway floor (or, in
stock Enterprise Gateway, the first process proxy) fills them from options and environment variables; nothing here reads either.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """The `local` substrate.

    `run_directory`: private (0700) directory of members' records, logs and, where their paths fit, sockets; the next gateway
    adopts from it.
    `maximum_processes`: members (each a launcher and its kernel) that may run at once, claimed ones included.
    `minimum_free_memory_bytes`: no member is started for the pool when less than this is available.
    `unclaimed_timeout_seconds`, `abandoned_timeout_seconds`: a launcher that no gateway holds ends itself after so long,
    before and after it is claimed.
    """

    run_directory: Path
    maximum_processes: int = 200
    minimum_free_memory_bytes: int = 512 * 1024**2
    inherited_environment: tuple[str, ...] = ()
    unclaimed_timeout_seconds: float = 60.0
    abandoned_timeout_seconds: float = 86_400.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """What holds for every pool of this gateway.

    `size`: floor and ceiling of kernelspecs that set neither. `total`: ready and booting members of all pools together, at most.
    `refill_per_second`: members started for the pool, at most. `concurrent_starts`: members booting for the pool at once.
    `refill_delay_seconds`: after a claim, while other members are ready, so long is waited before its place is filled, so that
    the boot does not take the processor from the user's first cell. `concurrent_launches`: members booting at once because a
    claim found none ready; further such claims queue.
    `boot_timeout_seconds`: a member that is not ready by then is retired. `expectation_timeout_seconds`: how long a start or stop
    that was asked for and never seen is believed in.
    """

    size: int = 2
    total: int = 100
    refill_per_second: float = 10.0
    refill_delay_seconds: float = 0.2
    concurrent_starts: int = 2
    concurrent_launches: int = 8
    boot_timeout_seconds: float = 120.0
    expectation_timeout_seconds: float = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the composition root needs."""

    local: LocalSettings
    pool: PoolSettings = dataclasses.field(default_factory=PoolSettings)
    launch_timeout_seconds: float = 40.0
    beat_interval_seconds: float = 5.0
