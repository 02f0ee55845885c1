"""What the pool tells others: one kind of event for metrics, one for whoever looks after a claimed kernel.

Events carry numbers and sentences, never a key, a token or an environment value. Listeners run on the event loop and must
return at once; one that raises is logged and does not harm the pool.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

from eg_knative.wire.control import Beat, ConnectionInfo

logger = logging.getLogger(__name__)

MissReason = Literal["empty", "booting", "quota", "age", "import-time-variable", "spec-changed", "disabled"]
"""Why a claim found no ready kernel. The list is fixed: it is a label of metrics."""

MISS_REASONS: tuple[MissReason, ...] = ("empty", "booting", "quota", "age", "import-time-variable", "spec-changed", "disabled")

PoolEventKind = Literal["claimed", "claim-failed", "started", "ready", "start-failed", "retired", "died", "adopted", "released"]

KernelEventKind = Literal["restarting", "restarted", "died", "gone", "lost", "found", "beat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolEvent:
    """Something that happened in a pool.

    `reason`: for "claimed" the miss reason or None for a hit; for "claim-failed" the error's word; for "retired" one of
    `aged`, `spec-changed`, `surplus`, `lost`, `failed`, `cancelled`, `closed`, `shut-down`, `evicted`. `seconds`: of
    the whole step ("claimed": the claim; "ready": from start to ready). `phases`: seconds of each phase of it.
    """

    kind: PoolEventKind
    kernelspec: str
    member: str | None = None
    reason: str | None = None
    seconds: float | None = None
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    message: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelEvent:
    """Something that happened to a claimed kernel.

    `restarting`/`restarted`: its process is being, was, replaced in place. `died`: the process ended by itself and is
    not coming back, or will be restarted (`exit["restarted"]`). `gone`: the launcher ended, and with it everything.
    `lost`/`found`: the gateway hears no beats, hears them again; the kernel may be well. `beat`: every beat. `exit`: as
    in the launcher protocol.
    """

    kind: KernelEventKind
    message: str | None = None
    exit: Any = None
    connection: ConnectionInfo | None = None
    beat: Beat | None = None


_Event = TypeVar("_Event", PoolEvent, KernelEvent)


def tell(listeners: Iterable[Callable[[_Event], None]], event: _Event) -> None:
    """Call every listener, whatever the others do."""
    for listener in tuple(listeners):
        try:
            listener(event)
        except Exception:  # noqa: PERF203 - one listener's mistake is not the next one's
            logger.exception("A listener failed on the event %r", event.kind)
