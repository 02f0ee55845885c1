"""The run directory: the one place on disk where local members are, and the right of one gateway to it.

Its parts are listed in docs/local-substrate.md. It does not protect members from programs of the same user: local
kernels run as the gateway's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

from eg_knative.errors import ConfigurationError
from eg_knative.substrates.local_sockets import SOCKET_NAME_BYTES, sockets_directory

_SECRET_BYTES = 32


class RunDirectory:
    """Open it before use, close it at the end. Blocking, for short file operations; whoever scans or deletes uses a thread.

    `environment`: the gateway's own, whose XDG_RUNTIME_DIR may hold the sockets; None: this process's.
    """

    def __init__(self, path: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.path = Path(os.path.abspath(path.expanduser()))
        self.members = self.path / "members"
        self.sockets = self.path / "s"
        """Where the control sockets are. Settled by `open`: elsewhere when this path is too long for a socket."""
        self.nursery_log = self.path / "nursery.log"
        self._environment = environment
        self._lock: int | None = None

    def open(self) -> bytes:
        """Create or check the directory, take it for this process, and return its secret.

        Raises ConfigurationError: somebody else's, open to others, in use by another gateway, not writable, no place for
        the sockets.
        """
        try:
            sockets = sockets_directory(self.path, environment=os.environ if self._environment is None else self._environment)
            _private(self.path)
            self._take()
            _private(self.members)
            self._make(sockets)
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
            if self.sockets.parent != self.path:
                with contextlib.suppress(OSError):  # Members that live on have their sockets in it.
                    self.sockets.rmdir()
                self.sockets = self.path / "s"
            os.close(self._lock)
            self._lock = None

    def new_address(self) -> str:
        """A fresh control address. Random, so that a launcher given up for lost never meets its successor."""
        return f"unix:{self.sockets / secrets.token_hex(SOCKET_NAME_BYTES)}"

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

    def _make(self, sockets: Path) -> None:
        if sockets.parent == self.path:
            _private(sockets)
            return
        # Its name can be guessed, and others may write beside it: what is there already may be a trap.
        with contextlib.suppress(FileExistsError):
            sockets.mkdir(mode=0o700)
        if (problem := _problem(sockets, kind=stat.S_IFDIR)) is not None:
            raise self._error(
                f"is so long that its control sockets belong in {sockets}, and that {problem}. Have it removed, or choose a"
                " run directory with a shorter path (--run-directory, EG_KNATIVE_RUN_DIRECTORY)."
            )
        self.sockets = sockets  # Not before: `close` removes what is named here.

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
        _check_private(path, kind=stat.S_IFREG)
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
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700, parents=True)
    _check_private(directory, kind=stat.S_IFDIR)


def _check_private(path: Path, *, kind: int) -> None:
    problem = _problem(path, kind=kind)
    if problem is not None:
        remedy = f"Choose another path, or make it yours alone (chmod go= {path})."
        raise ConfigurationError(f"{path} {problem}. {remedy}", field="run_directory")


def _problem(path: Path, *, kind: int) -> str | None:
    """Why `path` is not this user's own directory or file (`kind`, as in stat.S_IFDIR), or None."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if stat.S_IFMT(status.st_mode) != kind:
        return "is not a directory" if kind == stat.S_IFDIR else "is not a file"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to this one ({os.geteuid()})"
    if status.st_mode & 0o077:
        return f"is open to other users (mode {stat.S_IMODE(status.st_mode):04o})"
    return None
