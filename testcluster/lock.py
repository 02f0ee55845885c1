"""One change of the cluster at a time.

The lock is an flock: the kernel lets go of it when its holder dies, however it dies. It guards against a second
command of the same user's cache, not against two users; the network link does that (node.py).
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testcluster.errors import BusyError


@contextmanager
def held(path: Path, *, doing: str) -> Iterator[None]:
    """Hold the lock while the block runs; raise BusyError at once if somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BusyError(f"the test cluster is being changed by {holder}; wait for it, or end it by its pid") from None
        file.seek(0)
        file.truncate()
        file.write(f"`scripts/cluster {doing}` with pid {os.getpid()}")
        file.flush()
        yield
