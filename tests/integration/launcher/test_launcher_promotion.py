"""What a promotion changes in a running kernel, what it leaves, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.integration.launcher.launching import plain_kernel

if TYPE_CHECKING:
    from tests.integration.launcher.launching import Members


def _kernel(member: Any) -> psutil.Process:
    children = psutil.Process(member.process.pid).children()
    (kernel,) = [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]
    return kernel


async def test_a_running_kernel_takes_the_whole_identity(members: Members, any_python: str, tmp_path: Path) -> None:
    member = await members.ready(any_python, kernel={"env": {"PATH": os.environ["PATH"], "BASE": "base", "POOL": "pool-7"}})
    before = (await member.ok("GET", "/v1/connection"))["connection"]
    pid = _kernel(member).pid
    pool_file = member.directory / "connections" / f"kernel-{(await member.beat())['boot_id']}.json"
    assert pool_file.exists()

    answer = await member.promote(
        kernel_id="kernel-1", env={"POOL": "ada's", "LINES": "one\ntwo"}, working_directory=str(tmp_path), attributes={"a": 1}
    )

    assert answer["started"] == "running"
    assert answer["notice"] is None
    assert answer["kernel_generation"] == 1
    connection = answer["connection"]
    assert connection["key"] != before["key"]
    assert {**connection, "key": ""} == {**before, "key": ""}
    assert _kernel(member).pid == pid
    claim = (await member.ok("GET", "/v1/connection"))["claim"]
    assert claim["attributes"] == {"a": 1}
    assert "env" not in claim

    client = await member.client(connection)
    environment = await client.json("dict(os.environ)", "import os")
    assert environment.pop("MPLBACKEND").startswith("module://")
    for name in ("TERM", "CLICOLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER", "GIT_PAGER"):
        environment.pop(name, None)  # ipykernel's own
    for name in set(environment) & {"LC_CTYPE", "JPY_SESSION_NAME", "PYDEVD_USE_FRAME_EVAL"}:
        environment.pop(name)
    assert environment == {"PATH": os.environ["PATH"], "BASE": "base", "POOL": "ada's", "LINES": "one\ntwo"}
    assert await client.json("[os.getcwd(), _dh]", "import os") == [str(tmp_path), [str(tmp_path)]]
    assert await client.json("get_ipython().kernel.session.username") == "ada"

    file = str(member.directory / "connections" / "kernel-kernel-1.json")
    assert await client.json("__import__('ipykernel').get_connection_file()") == file
    arguments = await client.json("sys.argv", "import sys")
    assert arguments[0].endswith("ipykernel_launcher.py")
    assert arguments[1:] == ["-f", file]
    assert json.loads(Path(file).read_text()) == connection
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert not pool_file.exists()
    raw = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    assert raw == [word.replace("{connection_file}", file).encode() for word in member.configuration["kernel"]["argv"]]
    everything = Path(f"/proc/{pid}/cmdline").read_bytes() + json.dumps(await client.json("dict(os.environ)")).encode()
    assert member.configuration["name"].encode() not in everything
    assert b"pool-7" not in everything


async def test_it_looks_like_a_plain_kernel_from_inside(members: Members, any_python: str) -> None:
    """Warming up left no trace, and neither did this package: everything is as `python -m ipykernel_launcher` has it."""
    member = await members.ready(any_python)
    await member.promote()
    look = """
import json, os, signal, subprocess, sys, threading
print(json.dumps({
    "count": get_ipython().execution_count,
    "cells": [len(In), len(Out)],
    "names": sorted(n for n in globals() if not n.startswith("_")),
    "underscored": {n: globals()[n] for n in ("_", "__", "___", "_i", "_ii", "_iii")},
    "path": [p for p in sys.path],
    "modules": [m for m in sys.modules if "eg_launcher" in m],
    "argv": sys.argv[0],
    "flags": str(sys.flags),
    "inherited": subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True).stdout.split(),
    "signals": [str(signal.getsignal(n)) for n in (2, 13, 15, 17)],
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "session": os.getsid(0) == os.getpid() == os.getpgid(0),
    "main": sys.modules["__main__"] is get_ipython().user_module,
    "parent": sorted(get_ipython().parent_header),
    "stdin": os.readlink("/proc/self/fd/0"),
    "app": [type(get_ipython().kernel.parent).__mro__[-1].__name__, get_ipython().config == get_ipython().kernel.parent.config],
    "payload": get_ipython().payload_manager.read_payload(),
    "history": get_ipython().history_manager.session_number > 0,
}))
"""
    ours = json.loads(await (await member.client()).execute(look))
    async with plain_kernel(any_python, members.directory) as client:
        plain = json.loads(await client.execute(look))
    assert {**ours, "session": True} == {**plain, "session": True}
    assert ours["session"]


async def test_the_pools_key_is_refused_afterwards(members: Members, any_python: str) -> None:
    member = await members.ready(any_python)
    old = (await member.ok("GET", "/v1/connection"))["connection"]["key"]
    await member.promote()
    client = await member.client()
    await client.send("execute_request", {"code": "stolen = 1", "silent": False}, key=old)
    await asyncio.sleep(0.3)
    assert await client.execute("'stolen' in globals()") == "False"


async def test_once_per_boot_id(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    body = {"claim_id": "mine", "kernel_id": "k", "username": "ada"}
    answers = await asyncio.gather(*(member.call("POST", "/v1/promote", body) for _ in range(5)))
    assert len({json.dumps(answer) for answer in answers}) == 1
    assert answers[0][0] == 200
    status, refusal = await member.call("POST", "/v1/promote", {**body, "claim_id": "yours"})
    assert (status, refusal["reason"]) == (409, "already_claimed")
    assert "ada" not in json.dumps(refusal)
    assert "mine" not in json.dumps(refusal)


async def test_racing_claims_have_one_winner(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    bodies = [{"claim_id": f"claim-{index}", "kernel_id": f"k{index}"} for index in range(10)]
    answers = await asyncio.gather(*(member.call("POST", "/v1/promote", body) for body in bodies))
    assert sorted(status for status, _ in answers) == [200] + [409] * 9


async def test_an_import_time_variable_gets_a_fresh_process(members: Members, any_python: str) -> None:
    member = await members.ready(any_python, kernel={"import_time_variables": ["OMP_NUM_THREADS"], "pre_import": ["numpy"]})
    answer = await member.promote(env={"OMP_NUM_THREADS": "3"})
    assert answer["started"] == "fresh"
    assert "OMP_NUM_THREADS" in answer["notice"]
    assert answer["kernel_generation"] == 2
    client = await member.client()
    assert await client.json("os.environ['OMP_NUM_THREADS']", "import os") == "3"


async def test_an_import_time_variable_of_the_same_value_does_not(members: Members, ipykernel_6: str) -> None:
    kernel = {"import_time_variables": ["BASE"]}
    member = await members.ready(ipykernel_6, kernel=kernel)
    assert (await member.promote(env={"BASE": "base"}))["started"] == "running"


async def test_a_megabyte_of_environment(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    env = {f"V{index}": "x" * 100_000 for index in range(10)}
    await member.promote(env=env)
    client = await member.client()
    assert (
        await client.json("sum(len(v) for k, v in os.environ.items() if k[0] == 'V' and k[1:].isdigit())", "import os")
        == 1_000_000
    )
    await member.ok("POST", "/v1/restart", {})
    client = await member.client()
    assert await client.json("len(os.environ['V9'])", "import os") == 100_000


async def test_what_cannot_be_honoured_leaves_the_member_ready(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    good = {"claim_id": "c", "kernel_id": "k"}
    for change, status, reason, field in [
        ({"working_directory": "/nowhere/at/all"}, 422, "working_directory_missing", "working_directory"),
        ({"working_directory": "relative"}, 400, "bad_request", "working_directory"),
        ({"env": {"A": "x\0y"}}, 422, "bad_environment", "env"),
        ({"env": {"A=B": "x"}}, 422, "bad_environment", "env"),
        ({"env": {"A": 1}}, 422, "bad_environment", "env"),
        ({"env": {"A": "x" * 200_000}}, 422, "bad_environment", "env"),
        ({"env": []}, 400, "bad_request", "env"),
        ({"kernel_id": "../../etc/passwd"}, 422, "bad_kernel_id", "kernel_id"),
        ({"claim_id": 7}, 400, "bad_request", "claim_id"),
        ({"surprise": 7}, 400, "bad_request", "surprise"),
        ({"attributes": {"a": "x" * 20_000}}, 400, "bad_request", "attributes"),
    ]:
        answer = await member.call("POST", "/v1/promote", {**good, **change})
        assert (answer[0], answer[1]["reason"], answer[1].get("field")) == (status, reason, field), answer
    assert (await member.beat())["state"] == "ready"
    await member.promote()


async def test_secrets_are_not_logged(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6)
    answer = await member.promote(env={"SECRET": "do-not-show"})
    await member.ok("POST", "/v1/restart", {})
    await member.close()
    log = member.log.read_text()
    assert "do-not-show" not in log
    assert answer["connection"]["key"] not in log
