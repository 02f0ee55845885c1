"""python_pooled_local imports numpy and pandas ahead: what a user gains by it, and that nobody loses by it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eg_knative.settings import LocalSettings
from eg_knative.specification import KernelSpecification, parse_specification
from eg_knative.substrates.contract import Member
from eg_knative.substrates.local import LocalSubstrate
from eg_knative.wire.control import ClaimRequest, ConnectionInfo, LauncherClient
from tests.contract.kernels import evaluate
from tests.integration.launcher.launching import environment_python
from tests.integration.substrates.test_local_faults import until_ready
from tests.servers import KERNELSPEC, ROOT

IMPORTED = "[name for name in ('numpy', 'pandas') if name in sys.modules]"
BLAS = """
import ctypes, os
names = [f'{start}openblas_get_num_threads{end}' for start in ('scipy_', '') for end in ('64_', '')]
files = {line.split()[-1] for line in open('/proc/self/maps') if 'openblas' in line}
found = [getattr(ctypes.CDLL(file), name, None) for file in files for name in names]
counts = [function() for function in found if function is not None]
"""


def shipped(python: str) -> KernelSpecification:
    directory = ROOT / "kernelspecs" / KERNELSPEC
    document = json.loads((directory / "kernel.json").read_text())
    document["argv"][0] = python
    return parse_specification(name=KERNELSPEC, document=document, resource_dir=str(directory), python=python)


@pytest.fixture
async def substrate() -> AsyncIterator[LocalSubstrate]:
    with tempfile.TemporaryDirectory(prefix="egk-test-") as directory:
        substrate = LocalSubstrate(settings=LocalSettings(run_directory=Path(directory) / "run"))
        await substrate.open(gone=lambda _: None)
        yield substrate
        for name in list(substrate._members):
            await substrate.stop(member_name=name, grace_seconds=1)
        await substrate.close()


async def claimed(substrate: LocalSubstrate, specification: KernelSpecification) -> tuple[Member, ConnectionInfo]:
    member = await substrate.start(specification=specification, member_name="m")
    await until_ready(member)
    client = LauncherClient(address=member.address, token=member.token)
    claim = ClaimRequest(
        claim_id="claim",
        kernel_id=str(uuid.uuid4()),
        kernel_name=KERNELSPEC,
        username="ada",
        env={},
        working_directory=None,
        attributes={},
    )
    promotion = await client.promote(claim, timeout=30)
    await client.close()
    assert (promotion.started, promotion.notice) == ("running", None)
    return member, promotion.connection


async def test_numpy_and_pandas_are_there_and_use_the_whole_machine(substrate: LocalSubstrate) -> None:
    member, connection = await claimed(substrate, shipped(sys.executable))
    assert (member.started_by, member.notice) == ("fork", None)
    assert await evaluate(connection, "import sys", IMPORTED) == ["numpy", "pandas"]
    timed = "import time; began = time.perf_counter(); import pandas as pd; took = time.perf_counter() - began"
    assert await evaluate(connection, timed, "took") < 0.05  # 0.5 s and more where it was not imported
    assert await evaluate(connection, "import os", "[name for name in os.environ if name.endswith('_NUM_THREADS')]") == []
    counts = await evaluate(connection, BLAS, "counts")
    if not counts:
        pytest.skip("numpy has no OpenBLAS here that tells its number of threads")
    assert set(counts) == {len(os.sched_getaffinity(0))}


async def test_an_environment_without_them_still_forks_and_says_what_is_missing(substrate: LocalSubstrate) -> None:
    python = environment_python("bare", sys.executable, "ipykernel==6.29.5")
    member, connection = await claimed(substrate, shipped(python))
    assert member.started_by == "fork"
    assert member.notice is not None
    assert "Module numpy was not imported ahead: ModuleNotFoundError" in member.notice
    assert "Module pandas was not imported ahead: ModuleNotFoundError" in member.notice
    assert await evaluate(connection, "import sys", IMPORTED) == []


async def test_what_pandas_brings_along_starts_no_thread_before_the_fork(substrate: LocalSubstrate) -> None:
    """pyarrow's allocator would, and numexpr with more than one thread."""
    python = environment_python("pandas", sys.executable, "ipykernel==6.29.5", "pandas", "numexpr", "pyarrow")
    member, connection = await claimed(substrate, shipped(python))
    assert (member.started_by, member.notice) == ("fork", None)
    loaded = "[name for name in ('numexpr', 'pandas', 'pyarrow') if name in sys.modules]"
    assert await evaluate(connection, "import sys", loaded) == ["numexpr", "pandas", "pyarrow"]
    expected = min(16, len(os.sched_getaffinity(0)))
    assert await evaluate(connection, "import numexpr", "numexpr.set_num_threads(1)") == expected  # returns the former number
    assert await evaluate(connection, "import os", "os.environ.get('JE_ARROW_MALLOC_CONF')") is None
    table = "import pandas, pyarrow; table = pyarrow.Table.from_pandas(pandas.DataFrame({'a': range(1000)}))"
    assert await evaluate(connection, table, "(table.num_rows, int(table.to_pandas().a.sum()))") == (1000, 499_500)


async def test_a_module_that_starts_a_thread_costs_its_warmth_and_not_the_fork(substrate: LocalSubstrate, tmp_path: Path) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    (tmp_path / "starts_a_thread.py").write_text(text)
    document = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "env": {"PYTHONPATH": str(tmp_path)},
        "metadata": {"process_proxy": {"config": {"pool": {"pre_import": ["starts_a_thread"]}}}},
    }
    specification = parse_specification(name="threads", document=document, resource_dir="", python=sys.executable)
    member, connection = await claimed(substrate, specification)
    assert member.started_by == "fork"
    assert member.notice is not None
    assert member.notice.startswith("No module of pre_import was imported ahead: ")
    assert "starts_a_thread started a thread" in member.notice
    assert await evaluate(connection, "import starts_a_thread", "starts_a_thread.threading.active_count() > 1") is True
