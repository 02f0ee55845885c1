"""What must differ between forks of one zygote: random state, keys drawn at import, thread pools of one thread.

String hashing cannot be changed after the interpreter started: kernels of one zygote share `PYTHONHASHSEED`'s secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping

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


def restore_thread_pools(environment: Mapping[str, str]) -> None:
    """Undo the zygote's one thread: as many as the environment asks for, else as many as this process may use CPUs."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            paths = {line.rpartition(" ")[2].strip() for line in maps if ".so" in line}
    except OSError:
        return
    for path in paths:
        file_name = os.path.basename(path)
        for word, functions in _SETTERS.items():
            if word in file_name:
                _set_threads(path, functions, _wanted_threads(word, environment))


def _wanted_threads(word: str, environment: Mapping[str, str]) -> int:
    special = {"openblas": "OPENBLAS_NUM_THREADS", "libmkl_rt": "MKL_NUM_THREADS", "libblis": "BLIS_NUM_THREADS"}
    for variable in (special.get(word, ""), "OMP_NUM_THREADS"):
        text = environment.get(variable, "").split(",")[0].strip()
        if text.isdigit() and int(text) > 0:
            return min(int(text), 1024)
    return len(os.sched_getaffinity(0))


def _set_threads(path: str, functions: tuple[str, ...], count: int) -> None:
    with contextlib.suppress(OSError):
        library = ctypes.CDLL(path, mode=getattr(os, "RTLD_NOLOAD", 0) | ctypes.DEFAULT_MODE)
        for name in functions:
            function = getattr(library, name, None)
            if function is not None:
                function(ctypes.c_int(count))
