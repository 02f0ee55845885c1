"""scripts/bench: the benchmarks of bench/, in the environments that scripts/test uses."""

from __future__ import annotations

import os

from house.environments import ROOT, SetupError, environment, prepare
from house.progress import complain


def main(argv: list[str]) -> int:
    """Make the environments that the benchmark needs, and become it: a Ctrl-C then reaches what must end the servers."""
    try:
        python = prepare(directory=".venv", lock="test", own_packages=True)
        if {"lab", "all"} & set(argv) and not {"-h", "--help"} & set(argv):
            prepare(directory=".venv-lab", lock="lab-test", own_packages=False)
    except SetupError as error:
        complain(f"scripts/bench: {error}")
        return 1
    os.chdir(ROOT)
    return os.execve(python, [str(python), "-m", "bench", *argv], environment())
