"""What must differ between forks of one zygote: random state, keys drawn at import, thread pools of one thread.

String hashing cannot be changed after the interpreter started: kernels of one zygote share `PYTHONHASHSEED`'s secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

# Library (as part of its file name) → functions that set its number of threads.
_SETTERS = {
    "openblas": (
        "openblas_set_num_threads",
        "openblas_set_num_threads64_",
        "scipy_openblas_set_num_threads",
        "scipy_openblas_set_num_threads64_",
    ),
    "libgomp": ("omp_set_num_threads",),
    "libomp": ("omp_set_num_threads",),
    "libiomp": ("omp_set_num_threads",),
    "libmkl_rt": ("MKL_Set_Num_Threads",),
    "libblis": ("bli_thread_set_num_threads",),
}

_NUMEXPR_MOST = 16
"""Threads that numexpr takes by itself, at most, when NUMEXPR_MAX_THREADS is not set (its `_init_num_threads`)."""


def reseed() -> None:
    """Give this process random state of its own. Only modules that are loaded are touched."""
    for name, again in _RESEED.items():
        module = sys.modules.get(name)
        if module is not None:
            # A library of another version may have no such attribute; the rest must be reseeded all the same.
            with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
                again(module)


def _numpy(module: object) -> None:
    module.seed()  # type: ignore[attr-defined]


def _torch(module: object) -> None:
    module.manual_seed(int.from_bytes(os.urandom(7), "little"))  # type: ignore[attr-defined]


def _tempfile(module: object) -> None:
    module._name_sequence = None  # type: ignore[attr-defined]


def _uuid(module: object) -> None:
    module._node = None  # type: ignore[attr-defined]
    module._last_timestamp = None  # type: ignore[attr-defined]


def _multiprocessing(module: object) -> None:
    # Drawn at import: the same key would let one user's managers talk to another's.
    module.current_process().authkey = os.urandom(32)  # type: ignore[attr-defined]


_RESEED: Mapping[str, Callable[[object], None]] = {
    "random": _numpy,
    "numpy.random": _numpy,
    "torch": _torch,
    "tempfile": _tempfile,
    "uuid": _uuid,
    "multiprocessing.process": _multiprocessing,
}


class ThreadPools:
    """Libraries with thread pools that were loaded with one thread, found once; `restore` undoes that."""

    def __init__(self) -> None:
        self._setters: list[tuple[str, Any]] = []
        for path in _libraries():
            for word, functions in _SETTERS.items():
                if word in os.path.basename(path):
                    with contextlib.suppress(OSError):
                        library = ctypes.CDLL(path)
                        found = (getattr(library, name, None) for name in functions)
                        self._setters += [(word, function) for function in found if function is not None]

    def restore(self, environment: Mapping[str, str]) -> None:
        """As many threads as the environment asks for, else as many as this process may use CPUs."""
        for word, function in self._setters:
            function(ctypes.c_int(_wanted_threads(word, environment)))
        numexpr = sys.modules.get("numexpr")
        if numexpr is not None:
            with contextlib.suppress(Exception):  # It refuses more than its own limit, and then keeps one thread.
                numexpr.set_num_threads(min(_wanted_threads("numexpr", environment), _NUMEXPR_MOST))


def _libraries() -> set[str]:
    """Files of shared libraries that this process has mapped."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            return {line[line.index("/") :].strip() for line in maps if "/" in line and ".so" in line}
    except OSError:
        return set()


def _wanted_threads(word: str, environment: Mapping[str, str]) -> int:
    special = {
        "openblas": "OPENBLAS_NUM_THREADS",
        "libmkl_rt": "MKL_NUM_THREADS",
        "libblis": "BLIS_NUM_THREADS",
        "numexpr": "NUMEXPR_NUM_THREADS",
    }
    for variable in (special.get(word, ""), "OMP_NUM_THREADS"):
        text = environment.get(variable, "").split(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            return min(int(text), 1024)
    return len(os.sched_getaffinity(0))
