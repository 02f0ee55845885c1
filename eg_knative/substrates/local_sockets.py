"""Where the launchers' control sockets are: in the run directory, or elsewhere when their paths would be too long there.

Home directories can be long and a Unix socket's path cannot. The place elsewhere follows from the run directory's path
alone, so that the next gateway looks in the same one; members are found by their records even when it does not. Only
decides: `local_directory` makes the directory and checks that nobody else can get into it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from eg_knative.errors import ConfigurationError

SOCKET_PATH_LIMIT = 107
"""Bytes in a Unix socket's path on Linux (unix(7): 108 with the closing NUL)."""

SOCKET_NAME_BYTES = 6
"""Random bytes in a socket's name, which has two hexadecimal digits for each."""

_DIGEST_CHARACTERS = 12


def sockets_directory(run_directory: Path, *, environment: Mapping[str, str]) -> Path:
    """The directory for the sockets of an absolute `run_directory`; the one named `s` in it where that fits.

    Else `egk-USERID-DIGEST` in XDG_RUNTIME_DIR, if that is a directory of this user's alone to write, or in the directory
    for temporary files. Raises ConfigurationError where it fits nowhere, FileNotFoundError where there is no such directory.
    """
    own = run_directory / "s"
    if _excess(own) <= 0:
        return own
    digest = hashlib.sha256(os.fsencode(run_directory)).hexdigest()[:_DIGEST_CHARACTERS]
    name = f"egk-{os.geteuid()}-{digest}"
    runtime = environment.get("XDG_RUNTIME_DIR", "")
    if runtime and _is_ours(runtime) and _excess(Path(runtime, name)) <= 0:
        return Path(runtime, name)
    short = Path(tempfile.gettempdir(), name)
    if _excess(short) > 0:
        raise ConfigurationError(
            f"The run directory {run_directory} is too long by {_excess(own)} bytes for the sockets in it (the path of a Unix"
            f" socket has at most {SOCKET_PATH_LIMIT}), and {short} by {_excess(short)}. Choose a shorter path, here or for"
            " TMPDIR.",
            field="run_directory",
        )
    return short


def _excess(directory: Path) -> int:
    """Bytes by which the paths of sockets in `directory` are too long."""
    return len(os.fsencode(directory / ("0" * 2 * SOCKET_NAME_BYTES))) - SOCKET_PATH_LIMIT


def _is_ours(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return os.path.isabs(path) and stat.S_ISDIR(status.st_mode) and ours
