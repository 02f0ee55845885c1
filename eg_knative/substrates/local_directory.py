"""The run directory: the one place on disk where local members are, and the right of one gateway to it.

    RUN_DIRECTORY/          0700 lock                held with flock by the gateway that owns the directory; holds
    its process id secret              0600, 32 random bytes; members' tokens are derived from it, so it survives
    restarts nursery.log         output of the zygotes s/XXXXXXXX          launchers' control sockets, apart from
    their members because a socket's path is limited to 107 bytes members/NAME/       0700: member.json,
    launcher.log, connection/

It does not protect members from programs of the same user: local kernels run as the gateway's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from pathlib import Path

from eg_knative.errors import ConfigurationError

SOCKET_PATH_LIMIT = 107
"""Bytes in a Unix socket's path on Linux (unix(7): 108 with the closing NUL)."""

_SECRET_BYTES = 32
_SOCKET_NAME_BYTES = 6


class RunDirectory:
    """Open it before use, close it at the end. Blocking, for short file operations; whoever scans or deletes uses a thread."""

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path.expanduser()))
        self.members = self.path / "members"
        self.sockets = self.path / "s"
        self.nursery_log = self.path / "nursery.log"
        self._lock: int | None = None

    def open(self) -> bytes:
        """Create or check the directory, take it for this process, and return its secret.

        Raises ConfigurationError: somebody else's, open to others, path too long, in use by another gateway, not
        writable.
        """
        length = len(os.fsencode(self._socket_path("0" * 2 * _SOCKET_NAME_BYTES)))
        if length > SOCKET_PATH_LIMIT:
            raise self._error(
                f"is too long by {length - SOCKET_PATH_LIMIT} bytes: the sockets in it would have paths of {length} bytes,"
                f" and {SOCKET_PATH_LIMIT} is the limit. Choose a shorter path."
            )
        try:
            _private(self.path)
            self._take()
            for directory in (self.members, self.sockets):
                _private(directory)
            return self._secret()
        except OSError as error:
            self.close()
            raise self._error(f"cannot be used: {error.strerror}. Choose a directory that this user may write.") from error
        except ConfigurationError:
            self.close()
            raise

    def close(self) -> None:
        """Let another gateway have the directory. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def new_address(self) -> str:
        """A fresh control address. Random, so that a launcher given up for lost never meets its successor."""
        return f"unix:{self._socket_path(secrets.token_hex(_SOCKET_NAME_BYTES))}"

    def make_member(self, name: str) -> Path:
        """The new, empty directory of a member. Raises FileExistsError, OSError."""
        directory = self.members / name
        directory.mkdir(mode=0o700)
        (directory / "connection").mkdir(mode=0o700)
        return directory

    def remove_member(self, name: str, *, address: str | None) -> None:
        """Remove a member's files and socket; what is not there is no error. Blocking. Raises OSError."""
        if address is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.removeprefix("unix:"))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.members / name)

    def socket_addresses(self) -> set[str]:
        """The addresses for which there is a socket, whether anybody listens or not. Blocking."""
        return {f"unix:{path}" for path in self.sockets.iterdir()}

    def remove_sockets(self, addresses: set[str]) -> None:
        """Remove these sockets. Blocking."""
        for address in addresses:
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)

    def _socket_path(self, name: str) -> Path:
        return self.sockets / name

    def _take(self) -> None:
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(self._lock, 32).decode("ascii", "replace").strip() or "unknown"
            raise self._error(
                f"is in use by another gateway (process {owner}). Stop that one, or choose another directory for this one"
                " (--run-directory, EG_KNATIVE_RUN_DIRECTORY)."
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def _secret(self) -> bytes:
        path = self.path / "secret"
        if not path.exists():
            # Written whole under another name: a gateway that is killed in between leaves no half secret.
            write_private(path, secrets.token_bytes(_SECRET_BYTES))
        _check_private(path)
        secret = path.read_bytes()
        if len(secret) != _SECRET_BYTES:
            raise self._error("holds a file named secret that is not one of ours. Remove it, or choose another directory.")
        return secret

    def _error(self, what: str) -> ConfigurationError:
        return ConfigurationError(f"The run directory {self.path} {what}", field="run_directory")


def write_private(path: Path, content: bytes) -> None:
    """Write a file of mode 0600 so that a reader sees the old content or the new, never a part. Raises OSError.

    Not synced to disk: what these files describe does not survive a crash of the machine either.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(directory)


def _check_private(path: Path) -> None:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        problem = "is a symbolic link. Give the path that it points to."
    elif status.st_uid != os.geteuid():
        problem = f"belongs to user {status.st_uid}, not to this one ({os.geteuid()}). Choose another directory."
    elif status.st_mode & 0o077:
        problem = f"is open to other users (mode {stat.S_IMODE(status.st_mode):04o}). Close it with chmod go= {path}"
    else:
        return
    raise ConfigurationError(f"{path} {problem}", field="run_directory")
