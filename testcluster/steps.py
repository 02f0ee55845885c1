"""A long part of preparing the cluster: whether its result is there already, and how to make it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`done` is cheap and asked on every `up`; `make` leaves either the whole result or none."""

    name: str
    done: Callable[[], bool]
    make: Callable[[], None]


def pending(steps: list[Step]) -> list[Step]:
    """The steps whose result is missing, in order."""
    return [step for step in steps if not step.done()]
