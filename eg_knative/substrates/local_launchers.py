"""Starting one local launcher: its configuration, and the two ways to a process.

By fork from the nursery where that can be had, else by exec of `python -m eg_launcher`. Waiting until it serves,
records and clearing up are `local`'s business.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from eg_knative.errors import LaunchError
from eg_knative.names import token_digest
from eg_knative.settings import LocalSettings
from eg_knative.specification import KernelSpecification
from eg_knative.substrates import local_log
from eg_knative.substrates.local_directory import write_private
from eg_knative.substrates.local_environment import base_environment, kernel_environment
from eg_knative.substrates.local_nursery import NoWarmStartError, Nursery
from eg_knative.substrates.local_processes import discard, spawn
from eg_knative.wire.control import PROTOCOL
from eg_launcher.errors import ZygoteError

CONFIGURATION_FILE = "launcher.json"
LOG_FILE = "launcher.log"
FORK_TIMEOUT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """A process that is a launcher, or will be one. `started_by`: "fork" or "exec"; `address`: where it will listen."""

    pid: int
    address: str
    started_by: str
    notice: str | None


class LauncherStarter:
    """Starts launchers for one substrate. `environment`, `working_directory`: the gateway's own, read once."""

    def __init__(
        self,
        *,
        settings: LocalSettings,
        nursery: Nursery,
        environment: Mapping[str, str],
        working_directory: str,
        new_address: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._environment = environment
        self._working_directory = working_directory
        self._new_address = new_address

    def environment(self, specification: KernelSpecification) -> dict[str, str]:
        """The kernel's base environment."""
        return kernel_environment(
            gateway=self._environment,
            extra=self._settings.inherited_environment,
            specification=specification.env,
            executable=specification.argv[0],
        )

    async def start(self, *, specification: KernelSpecification, name: str, address: str, token: str, directory: Path) -> Started:
        """Start the launcher's process. Raises LaunchError (`not_found`, `launcher_failed`).

        When it is cancelled, either no process was started or it is killed before this returns.
        """
        env = self.environment(specification)
        check_program(specification.argv[0], search_path=env["PATH"])
        configuration = launcher_configuration(
            specification=specification,
            name=name,
            address=address,
            token=token,
            directory=directory,
            working_directory=first_usable(self._working_directory, env.get("HOME"), "/"),
            env=env,
            settings=self._settings,
        )
        descriptor = local_log.open_log(directory / LOG_FILE)
        try:
            try:
                zygote = await self._nursery.zygote(specification=specification, env=env)
                # Not to be interrupted half-way: a launcher whose process id nobody knows could not be ended.
                fork = zygote.fork_launcher(config=configuration, log_fd=descriptor, timeout_seconds=FORK_TIMEOUT_SECONDS)
                return Started(
                    pid=await _whole(fork), address=address, started_by="fork", notice=" ".join(zygote.notices) or None
                )
            except NoWarmStartError as error:
                notice = f"Not forked from a zygote: {error}"
            except ZygoteError as error:
                self._nursery.failed(zygote, why=f"The last fork failed: {error}.")
                notice = f"Not forked from a zygote: {error}"
                # A fork that comes to pass after its time limit must not meet its successor; unwanted, it ends itself.
                address = configuration["listen"] = self._new_address()
            pid = await _whole(asyncio.to_thread(self._exec, configuration, directory, descriptor))
            return Started(pid=pid, address=address, started_by="exec", notice=notice)
        finally:
            os.close(descriptor)

    def _exec(self, configuration: Mapping[str, Any], directory: Path, descriptor: int) -> int:
        path = directory / CONFIGURATION_FILE
        write_private(path, json.dumps(configuration).encode())
        env = base_environment(gateway=self._environment, extra=self._settings.inherited_environment)
        try:
            return spawn(
                [sys.executable, "-m", "eg_launcher", "--config", str(path)], env=env, directory=directory, output=descriptor
            )
        except OSError as error:
            raise LaunchError(
                f"The launcher could not be started: {error.strerror}. Is there room for another process?",
                reason="launcher_failed",
            ) from error


def launcher_configuration(
    *,
    specification: KernelSpecification,
    name: str,
    address: str,
    token: str,
    directory: Path,
    working_directory: str,
    env: Mapping[str, str],
    settings: LocalSettings,
) -> dict[str, Any]:
    """The configuration object of docs/launcher-protocol.md for one member.

    `directory`: the member's own. `working_directory`: the kernel's, unless its claim names another; never the member's,
    whose files go when the member goes.
    """
    return {
        "protocol": PROTOCOL,
        "name": name,
        "listen": address,
        "token_sha256": token_digest(token),
        "kernel": {
            "argv": list(specification.argv),
            "env": dict(env),
            "working_directory": working_directory,
            "kernel_name": specification.name,
            "interrupt_mode": specification.interrupt_mode,
            "start": specification.start,
            "pre_import": list(specification.pool.pre_import),
            "import_time_variables": list(specification.pool.import_time_variables),
            "zygote": specification.zygote,
            "spare": specification.spare,
            "auto_restart": specification.auto_restart,
        },
        "ip": "127.0.0.1",
        "connection_directory": str(directory / "connection"),
        "unclaimed_timeout_seconds": settings.unclaimed_timeout_seconds,
        "abandoned_timeout_seconds": settings.abandoned_timeout_seconds,
    }


def first_usable(*directories: str | None) -> str:
    """The first of these that can be entered; the last one if none can."""
    usable = (each for each in directories if each and os.path.isabs(each) and os.path.isdir(each) and os.access(each, os.X_OK))
    return next(usable, directories[-1] or "/")


def check_program(program: str, *, search_path: str) -> None:
    """Raises LaunchError (`not_found`) when the kernel's program, or the interpreter that its first line names, is not there."""
    found = shutil.which(program, path=search_path)
    if found is None:
        raise LaunchError(
            f"The kernel's program {program} does not exist or may not be executed. Correct argv[0] of the kernelspec.",
            reason="not_found",
        )
    with open(found, "rb") as file:
        first = file.readline(256)
    if first.startswith(b"#!") and (words := first[2:].split()):
        interpreter = os.fsdecode(words[0])
        if not os.access(interpreter, os.X_OK):
            raise LaunchError(
                f"The kernel's program {program} asks for the interpreter {interpreter}, which does not exist."
                " Correct the program's first line.",
                reason="not_found",
            )


async def _whole(work: Any) -> int:
    """Run to the end even if cancelled; then end what was started, and be cancelled."""
    task: asyncio.Future[int] = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await asyncio.to_thread(discard, task.result())
        raise
    return task.result()
