"""The nursery: one zygote for each kernelspec, from which launchers (and with them their kernels) are forked.

It exists for memory and speed: all members of a pool share one set of imported pages. It promises no warm start.
Whatever goes wrong becomes a sentence for the member's `notice`, and the caller starts the launcher by exec; after
a failure the zygote is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from eg_knative.specification import KernelSpecification
from eg_launcher.errors import ZygoteError
from eg_launcher.zygote_client import ChildExit, Zygote, interpreter_of

log = logging.getLogger(__name__)

START_TIMEOUT_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
MAXIMUM_ZYGOTES = 8
"""Each costs about 40 MiB with pandas imported; the one that was asked longest ago goes first."""


class NoWarmStartError(Exception):
    """A launcher cannot be forked now. The message is a sentence for people."""


@dataclasses.dataclass
class _Nest:
    """One kernelspec's zygote, or the memory of why there is none."""

    digest: str
    starting: asyncio.Task[Zygote] | None = None
    zygote: Zygote | None = None
    failures: int = 0
    not_before: float = 0.0
    why: str = ""


class Nursery:
    """Zygotes of one gateway. Close it; what they forked lives on."""

    def __init__(self, *, log_path: Path) -> None:
        self._log_path = log_path
        self._nests: collections.OrderedDict[str, _Nest] = collections.OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()
        self._exits: collections.OrderedDict[int, ChildExit] = collections.OrderedDict()
        self._closed = False

    async def zygote(self, *, specification: KernelSpecification, env: Mapping[str, str]) -> Zygote:
        """A living zygote for this kernelspec; started when there is none. Raises NoWarmStartError."""
        python = interpreter_of(specification.argv)
        if not specification.zygote:
            raise NoWarmStartError("The kernelspec says zygote: false.")
        if python is None:
            raise NoWarmStartError("The kernel is not ipykernel, which alone can be forked.")
        if self._closed:
            raise NoWarmStartError("The gateway is closing.")
        nest = self._nest(specification)
        if nest.zygote is not None and nest.zygote.alive:
            return nest.zygote
        if nest.starting is None:
            if (left := nest.not_before - asyncio.get_running_loop().time()) > 0:
                raise NoWarmStartError(f"{nest.why} It is tried again in {left:.0f} s.")
            nest.starting = asyncio.create_task(
                self._start(nest, python=python[0], specification=specification, env=env),
                name=f"start of the zygote of {specification.name}",
            )
            nest.starting.add_done_callback(_read_error)
        # Shared by all who wait: one who is cancelled does not take it from the others.
        starting = nest.starting
        await asyncio.wait({starting})
        try:
            return starting.result()
        except (ZygoteError, asyncio.CancelledError) as error:
            raise NoWarmStartError(nest.why or "The gateway is closing.") from error

    def failed(self, zygote: Zygote, *, why: str) -> None:
        """A fork failed: this zygote is not asked again."""
        for nest in self._nests.values():
            if nest.zygote is zygote:
                nest.zygote = None
                self._blame(nest, why)
        self._retire(zygote)

    def exit_of(self, pid: int) -> ChildExit | None:
        """How a forked launcher ended, if its zygote told."""
        return self._exits.pop(pid, None)

    async def close(self) -> None:
        """End all zygotes. Idempotent."""
        self._closed = True
        for nest in self._nests.values():
            if nest.starting is not None:
                nest.starting.cancel()
                await asyncio.wait({nest.starting})
            if nest.zygote is not None:
                self._retire(nest.zygote)
        self._nests.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def _nest(self, specification: KernelSpecification) -> _Nest:
        nest = self._nests.get(specification.name)
        if nest is None or nest.digest != specification.digest:
            if nest is not None:
                self._drop(specification.name)
            nest = self._nests[specification.name] = _Nest(specification.digest)
            while len(self._nests) > MAXIMUM_ZYGOTES:
                self._drop(next(iter(self._nests)))
        self._nests.move_to_end(specification.name)
        return nest

    def _drop(self, name: str) -> None:
        nest = self._nests.pop(name)
        if nest.starting is not None:
            nest.starting.cancel()
        if nest.zygote is not None:
            self._retire(nest.zygote)

    async def _start(
        self, nest: _Nest, *, python: list[str], specification: KernelSpecification, env: Mapping[str, str]
    ) -> Zygote:
        descriptor = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            start = functools.partial(
                Zygote.start,
                python=python,
                env=env,
                cwd="/",
                log_fd=descriptor,
                role="nursery",
                on_exit=self._note_exit,
                on_death=lambda why: self._died(nest, why),
                timeout_seconds=START_TIMEOUT_SECONDS,
            )
            try:
                zygote = await start(pre_import=specification.pool.pre_import)
            except ZygoteError as error:
                if not specification.pool.pre_import:
                    raise
                # One of them ends the process, hangs or starts a thread. A fork without them is still the faster start.
                zygote = await start(pre_import=())
                zygote.notices += (f"No module of pre_import was imported ahead: {error}",)
        except ZygoteError as error:
            self._blame(nest, f"No zygote: {error}")
            log.warning("No zygote for kernelspec %s: %s", specification.name, error)
            raise
        finally:
            nest.starting = None
            os.close(descriptor)
        nest.zygote, nest.failures = zygote, 0
        for notice in zygote.notices:
            log.warning("Zygote of kernelspec %s: %s", specification.name, notice)
        return zygote

    def _died(self, nest: _Nest, why: str) -> None:
        if nest.zygote is None:
            return  # it never got as far as that, and whoever starts it tells
        log.warning("A zygote ended: %s", why)
        self._retire(nest.zygote)
        nest.zygote = None
        self._blame(nest, f"The zygote ended: {why}.")

    def _blame(self, nest: _Nest, why: str) -> None:
        pause = min(FIRST_PAUSE_SECONDS * 2**nest.failures, LONGEST_PAUSE_SECONDS)
        nest.failures = min(nest.failures + 1, 10)
        nest.not_before = asyncio.get_running_loop().time() + pause
        nest.why = why

    def _note_exit(self, child: ChildExit) -> None:
        self._exits[child.pid] = child
        while len(self._exits) > 256:
            self._exits.popitem(last=False)

    def _retire(self, zygote: Zygote) -> None:
        task = asyncio.create_task(self._end(zygote), name="end of a zygote")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, zygote: Zygote) -> None:
        with contextlib.suppress(ZygoteError, OSError):
            await zygote.close()


def _read_error(task: asyncio.Task[Zygote]) -> None:
    """Whoever waited may have been cancelled; the error was logged already."""
    if not task.cancelled():
        task.exception()


def words(ended: ChildExit | None, exit_code: int | None) -> str:
    """How a launcher ended, as far as anybody knows: a part of a sentence. `exit_code` as subprocess tells it."""
    if ended is not None and ended.signal is not None:
        return f"was ended by signal {ended.signal}"
    code = ended.code if ended is not None else exit_code
    if code is None:
        return "ended"
    return f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
