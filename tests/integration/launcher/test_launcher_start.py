"""Ways to start a kernel, fastest first, and what is said when one does not work."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.integration.launcher.launching import ipykernel, npm_package

if TYPE_CHECKING:
    from tests.integration.launcher.launching import Member, Members


def _zygote(member: Member) -> psutil.Process:
    (zygote,) = [p for p in psutil.Process(member.process.pid).children() if "eg-launcher-zygote" in p.cmdline()]
    return zygote


def _module(members: Members, name: str, text: str) -> dict[str, dict[str, object]]:
    """A module on the kernel's path, imported ahead."""
    (members.directory / f"{name}.py").write_text(text)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(members.directory)}
    return {"kernel": {"env": env, "pre_import": [name]}}


async def test_forks_differ_in_every_random_state(members: Members, any_python: str) -> None:
    """Two members cannot share a zygote here, so restarts do: each is another fork of one."""
    member = await members.ready(any_python, kernel={"pre_import": ["numpy.random", "tempfile", "multiprocessing", "uuid"]})
    await member.promote()
    seen = []
    for _ in range(3):
        client = await member.client()
        look = (
            "[random.random(), float(numpy.random.rand()), float(numpy.random.default_rng().random()), "
            "str(uuid.uuid4()), str(uuid.uuid1()), tempfile.mktemp(), secrets.token_hex(8), id(object()) and os.getpid(), "
            "bytes(multiprocessing.current_process().authkey).hex(), get_ipython().kernel.ident]"
        )
        seen.append(await client.json(look, "import random, numpy, uuid, tempfile, secrets, os, multiprocessing"))
        assert (await member.beat())["kernel_started_by"] in ("fork", "spare")
        await member.ok("POST", "/v1/restart", {})
    for values in zip(*seen, strict=True):
        assert len(set(values)) == 3, values


async def test_thread_pools_are_as_the_user_has_them(members: Members, ipykernel_7: str) -> None:
    """The zygote imports numpy with one thread; a kernel of it has as many as a plain one."""
    member = await members.ready(ipykernel_7, kernel={"pre_import": ["numpy"]})
    await member.promote()
    client = await member.client()
    assert await client.json("[v for v in os.environ if v.endswith('_NUM_THREADS')]", "import os") == []
    await client.execute("import numpy; a = numpy.ones((600, 600)); b = a @ a")
    threads = "int(open('/proc/self/status').read().split('Threads:')[1].split()[0])"
    before = await client.json(threads)
    await client.execute("import ctypes, glob, numpy, os")
    library = "glob.glob(os.path.join(os.path.dirname(numpy.__file__), '..', 'numpy.libs', '*openblas*'))[0]"
    names = ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads")
    get = f"next(f for f in (getattr(ctypes.CDLL({library}), n, None) for n in {names}) if f)()"
    assert await client.json(get) == len(os.sched_getaffinity(0))
    assert before > 5


async def test_a_module_that_cannot_be_imported_is_a_notice(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6, kernel={"pre_import": ["no_such_module", "decimal"]})
    beat = await member.beat()
    assert beat["kernel_started_by"] == "fork"
    assert "no_such_module" in beat["notice"]


async def test_a_zygote_with_a_thread_is_refused(members: Members, ipykernel_6: str) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    member = await members.ready(ipykernel_6, **_module(members, "starts_a_thread", text))
    beat = await member.beat()
    assert beat["kernel_started_by"] == "exec"
    assert "starts_a_thread" in beat["notice"]
    assert "thread" in beat["notice"]
    assert (await member.promote())["started"] == "running"


async def test_a_zygote_that_dies_while_it_imports(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(
        ipykernel_6, **_module(members, "dies", "import os\nif 'run.py' in str(__import__('sys').orig_argv): os._exit(9)\n")
    )
    beat = await member.beat()
    assert beat["kernel_started_by"] == "exec"
    assert "code 9" in beat["notice"] or "zygote is gone" in beat["notice"]


async def test_without_its_zygote_a_member_restarts_all_the_same(members: Members, any_python: str) -> None:
    member = await members.ready(any_python, kernel={"spare": False})
    await member.promote(env={"MINE": "kept"})
    _zygote(member).kill()
    beat = await member.until(lambda beat: beat["notice"] is not None)
    assert "zygote is gone" in beat["notice"]
    answer = await member.ok("POST", "/v1/restart", {})
    assert answer["started_by"] == "exec"
    assert await (await member.client()).json("os.environ['MINE']", "import os") == "kept"


async def test_a_zygote_that_hangs_is_not_waited_for(members: Members, ipykernel_6: str) -> None:
    member = await members.ready(ipykernel_6, kernel={"spare": False})
    await member.promote()
    os.kill(_zygote(member).pid, signal.SIGSTOP)
    answer = await member.ok("POST", "/v1/restart", {})
    assert answer["started_by"] == "exec"
    assert "did not answer" in (await member.beat())["notice"]


async def test_a_kernel_that_cannot_be_entered_is_started_plainly(members: Members, ipykernel_6: str) -> None:
    """Our way in fails; what the kernelspec says works."""
    customise = "import sys\nif 'run.py' in str(sys.orig_argv): sys.modules['ipykernel.kernelapp'] = None\n"
    (members.directory / "sitecustomize.py").write_text(customise)
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(members.directory)}
    member = await members.ready(ipykernel_6, kernel={"env": env})
    beat = await member.beat()
    assert beat["kernel_started_by"] == "plain"
    answer = await member.promote(env={"MINE": "1"})
    assert answer["started"] == "fresh"
    assert "cannot be promoted" in answer["notice"]
    assert await (await member.client()).json("os.environ['MINE']", "import os") == "1"


async def test_a_program_that_does_not_exist_is_told_at_once(members: Members) -> None:
    started = time.monotonic()
    member = members.start(["/no/such/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"])
    beat = await member.until(lambda beat: beat["state"] == "failed")
    assert time.monotonic() - started < 2
    assert beat["exit"]["reason"] == "not_found"
    assert "/no/such/python" in beat["message"]


async def test_a_program_that_does_not_exist_is_told_at_the_claim(members: Members) -> None:
    member = members.start(["no-such-kernel", "{connection_file}"])
    await member.until(lambda beat: beat["state"] == "ready")
    body = {"claim_id": "c", "kernel_id": "k"}
    status, answer = await member.call("POST", "/v1/promote", body)
    assert (status, answer["reason"], answer["exit"]["reason"]) == (500, "kernel_failed", "not_found")
    assert await member.call("POST", "/v1/promote", body) == (status, answer)


async def test_a_kernel_that_exits_at_once_says_why(members: Members) -> None:
    program = "import sys; print('licence expired', file=sys.stderr); sys.exit(4)"
    member = members.start([sys.executable, "-c", program, "{connection_file}"])
    await member.until(lambda beat: beat["state"] == "ready")
    status, answer = await member.call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": "k"})
    assert (status, answer["reason"]) == (500, "kernel_failed")
    assert answer["exit"]["code"] == 4
    assert "licence expired" in answer["message"]
    assert (await member.until(lambda beat: beat["state"] == "failed"))["exit"]["code"] == 4


async def test_an_ipykernel_that_exits_at_once_says_why(members: Members, ipykernel_6: str) -> None:
    (members.directory / "sitecustomize.py").write_text("import sys; print('bad moon', file=sys.stderr); sys.exit(5)")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(members.directory)}
    member = members.start(ipykernel(ipykernel_6), kernel={"env": env})
    beat = await member.until(lambda beat: beat["state"] == "failed")
    assert "bad moon" in beat["message"]
    assert beat["exit"]["reason"] in ("exited", "signalled")


async def test_a_kernel_that_never_binds(members: Members) -> None:
    member = members.start(
        [sys.executable, "-c", "import time; time.sleep(600)", "{connection_file}"], kernel={"start_timeout_seconds": 1}
    )
    await member.until(lambda beat: beat["state"] == "ready")
    asking = asyncio.create_task(member.call("POST", "/v1/promote", {"claim_id": "c", "kernel_id": "k"}))
    await asyncio.sleep(0.3)
    member.note_processes()
    status, answer = await asking
    assert (status, answer["reason"], answer["exit"]["reason"]) == (504, "kernel_timeout", "never_bound")
    await member.nothing_left()


async def test_a_kernel_that_is_not_ours_may_boot_early(members: Members, ipykernel_6: str) -> None:
    """Any program that speaks the protocol; here ipykernel behind a shell, which cannot be looked into."""
    script = members.directory / "kernel.sh"
    script.write_text(f'#!/bin/sh\nexec {ipykernel_6} -m ipykernel_launcher -f "$1"\n')
    script.chmod(0o755)
    member = members.start([str(script), "{connection_file}"], kernel={"start": "boot"})
    beat = await member.until(lambda beat: beat["state"] == "ready")
    assert (beat["kernel_started_by"], beat["kernel_generation"]) == ("plain", 1)
    answer = await member.promote(env={"MINE": "1"})
    assert (answer["started"], answer["kernel_generation"]) == ("fresh", 2)
    client = await member.client()
    assert await client.json("os.environ['MINE']", "import os") == "1"
    assert sorted((await client.json("dict(os.environ)")).keys() & {"BASE", "HOME", "PATH", "MINE"}) == [
        "BASE",
        "HOME",
        "MINE",
        "PATH",
    ]
    assert (await member.ok("POST", "/v1/restart", {}))["started_by"] == "plain"


async def test_a_kernel_that_cannot_share_reserved_ports(members: Members, ipykernel_6: str) -> None:
    program = (
        "import json, runpy, socket, sys\n"
        "for name, port in json.load(open(sys.argv[1])).items():\n"
        "    if name.endswith('_port'):\n"
        "        with socket.socket() as s: s.bind(('127.0.0.1', port))\n"
        "sys.argv[1:] = ['-f', sys.argv[1]]\n"
        "runpy.run_module('ipykernel_launcher', run_name='__main__')"
    )
    member = members.start([ipykernel_6, "-c", program, "{connection_file}"])
    await member.until(lambda beat: beat["state"] == "ready")
    answer = await member.promote()
    assert answer["started"] == "fresh"
    assert "reserved no longer" in (await member.beat())["notice"]
    assert await (await member.client()).execute("1 + 1") == "2"


async def test_a_working_directory_that_is_not_there_is_told(members: Members, ipykernel_6: str) -> None:
    member = members.start(ipykernel(ipykernel_6), kernel={"working_directory": "/no/such/directory"})
    beat = await member.until(lambda beat: beat["state"] == "failed")
    assert "/no/such/directory" in beat["message"] or "No such file" in beat["message"]


async def test_a_kernel_that_is_not_python(members: Members, tmp_path: Path) -> None:
    """Deno's, from npm: booted launcher, kernel process at the claim."""
    modules = npm_package("deno")
    deno = next((str(path) for path in modules.glob("**/deno") if path.is_file() and os.access(path, os.X_OK)), None)
    if deno is None:
        deno = shutil.which("deno", path=str(modules / ".bin"))
    if deno is None:
        pytest.skip("npm's deno has no program for this machine")
    member = members.start(
        [deno, "jupyter", "--kernel", "--conn", "{connection_file}"],
        kernel={"env": {"PATH": os.environ["PATH"], "HOME": str(members.directory), "NO_COLOR": "1"}},
    )
    beat = await member.until(lambda beat: beat["state"] == "ready")
    assert (beat["kernel_state"], beat["kernel_generation"]) == ("absent", 0)
    answer = await member.promote(env={"MINE": "for deno"}, working_directory=str(tmp_path))
    assert (answer["started"], answer["notice"], answer["kernel_generation"]) == ("fresh", None, 1)
    client = await member.client()
    assert "for deno" in await client.execute("Deno.env.get('MINE')", late=2)
    assert str(tmp_path) in await client.execute("Deno.cwd()", late=2)
    await client.execute("let x = 1; x", late=2)
    before = answer["connection"]
    assert (await member.ok("POST", "/v1/restart", {}))["connection"] == before
    assert "undefined" in await (await member.client()).execute("typeof x", late=2)
