"""Keeping forks small: what a zygote does to its heap before the first fork so that children write to few of its pages.

A child that allocates into a hole of an inherited page copies the whole page. So holes are filled, each with a block of just
its size; children then allocate in dense pages of their own. CPython's own allocator and glibc's only; with others
(`PYTHONMALLOC`, musl) nothing is filled and nothing breaks.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import tempfile
from typing import Any

from eg_launcher import system

# A line of `sys._debugmallocstats()`: class, size, pools, blocks in use, available blocks.
_CLASS = re.compile(rb"^\s*\d+\s+(\d+)\s+\d+\s+\d+\s+(\d+)\s*$", re.MULTILINE)
_MOST_BLOCKS = 2_000_000

# Kept for the life of the process: freeing them would open the holes again.
_plugs: list[Any] = []


def settle() -> None:
    """After the imports, before the first fork."""
    system.one_malloc_arena()
    gc.collect()
    system.give_memory_back()
    _fill_holes()
    _fill_c_holes()
    gc.freeze()


def _fill_holes() -> None:
    for size, available in _holes():
        if available > _MOST_BLOCKS:
            continue
        _plugs.append([_block(size) for _ in range(available)])


def _block(size: int) -> Any:
    """An object that takes one block of this size class."""
    if size <= 16:
        return object()
    if size <= 32:
        return 1.5 * size
    return bytes(size - bytes.__basicsize__)


def _holes() -> list[tuple[int, int]]:
    """(block size, free blocks in pools that are in use) of CPython's small-object allocator."""
    statistics = getattr(sys, "_debugmallocstats", None)
    if statistics is None:
        return []
    saved = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            sys.stderr.flush()
            os.dup2(file.fileno(), 2)
            try:
                statistics()
                ctypes.CDLL(None).fflush(None)
            finally:
                os.dup2(saved, 2)
            file.seek(0)
            text = file.read()
    finally:
        os.close(saved)
    return [(int(size), int(available)) for size, available in _CLASS.findall(text)]


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def _fill_c_holes() -> None:
    """The same for glibc's heap: take free chunks, large ones first, until the next would come from the top of the heap."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallinfo, malloc, free = libc.mallinfo2, libc.malloc, libc.free
    except (OSError, AttributeError):
        return
    mallinfo.restype = _Mallinfo2
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes = [ctypes.c_void_p]
    budget = mallinfo().fordblks
    for size in (65536, 16384, 4096, 2048, 1024, 768, 528):
        while budget > 0:
            top = mallinfo().keepcost
            block = malloc(size)
            if not block:
                return
            if mallinfo().keepcost != top:
                free(block)
                break
            budget -= size
