from __future__ import annotations

import asyncio
import subprocess

import pytest

from eg_knative.substrates import local_sweep
from eg_knative.substrates.local_processes import ProcessIdentity, end_sessions, identify
from eg_knative.substrates.local_sweep import SessionSweeper
from eg_knative.tasks import OwnedTasks


async def test_many_who_ask_share_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps: list[list[ProcessIdentity]] = []

    def counted(leaders: list[ProcessIdentity]) -> int:
        sweeps.append(leaders)
        return end_sessions(leaders)

    monkeypatch.setattr(local_sweep, "end_sessions", counted)
    processes = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(6)]
    identities = [identity for process in processes if (identity := identify(process.pid)) is not None]
    tasks = OwnedTasks()
    sweeper = SessionSweeper(tasks=tasks)
    await asyncio.gather(*(sweeper.end([identity]) for identity in identities[:4]), sweeper.end([]))
    assert [len(sweep) for sweep in sweeps] == [4]
    first = asyncio.create_task(sweeper.end([identities[4]]))
    await asyncio.sleep(0)
    first.cancel()
    await sweeper.end([identities[5]])
    await tasks.close()
    assert sum(len(sweep) for sweep in sweeps) == 6, "whoever is cancelled is still swept for"
    assert [process.wait(timeout=10) for process in processes] == [-9] * 6
