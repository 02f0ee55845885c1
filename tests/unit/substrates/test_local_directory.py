from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from eg_knative.errors import ConfigurationError
from eg_knative.substrates.local_directory import RunDirectory, write_private
from eg_knative.substrates.local_sockets import SOCKET_PATH_LIMIT


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_private_with_a_lasting_secret(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    directory = RunDirectory(path)
    secret = directory.open()
    assert len(secret) == 32
    assert {p.name: mode(p) for p in path.iterdir()} == {"lock": 0o600, "secret": 0o600, "members": 0o700, "s": 0o700}
    assert mode(path) == 0o700
    directory.close()
    directory.close()
    again = RunDirectory(path)
    assert again.open() == secret
    again.close()
    other = RunDirectory(tmp_path / "other")
    assert other.open() != secret
    other.close()


def test_the_umask_does_not_open_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        directory = RunDirectory(tmp_path / "run")
        directory.open()
        directory.make_member("m")
    finally:
        os.umask(before)
    assert {mode(p) for p in (tmp_path / "run").rglob("*") if p.is_dir()} == {0o700}
    assert {mode(p) for p in (tmp_path / "run").rglob("*") if p.is_file()} == {0o600}
    directory.close()


def test_a_second_gateway_is_told_who_has_it(tmp_path: Path) -> None:
    code = "import sys, pathlib; from eg_knative.substrates.local_directory import RunDirectory\n"
    code += "RunDirectory(pathlib.Path(sys.argv[1])).open(); print('open', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "open\n"
        second = RunDirectory(tmp_path / "run")
        with pytest.raises(ConfigurationError) as refusal:
            second.open()
        assert f"process {first.pid}" in refusal.value.message
        assert str(tmp_path / "run") in refusal.value.message
        assert "choose another directory for this one (--run-directory" in refusal.value.message
        assert refusal.value.field == "run_directory"
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        first.stdin.close()
        first.stdout.close()
    second.open()
    second.close()


@pytest.mark.parametrize("bits", [0o750, 0o701, 0o777])
def test_one_that_is_open_to_others_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "run"
    path.mkdir()
    path.chmod(bits)
    with pytest.raises(ConfigurationError, match=f"chmod go= {path}"):
        RunDirectory(path).open()
    assert list(path.iterdir()) == []


def test_a_secret_that_others_could_read_is_refused(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run")
    first.open()
    first.close()
    (tmp_path / "run" / "secret").chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to other users"):
        RunDirectory(tmp_path / "run").open()


def test_a_spoilt_secret_is_refused_and_kept(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path / "run")
    first.open()
    first.close()
    (tmp_path / "run" / "secret").write_bytes(b"short")
    for _ in range(2):  # the refusal lets go of the lock
        with pytest.raises(ConfigurationError, match="not one of ours"):
            RunDirectory(tmp_path / "run").open()
    assert (tmp_path / "run" / "secret").read_bytes() == b"short"


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigurationError, match="symbolic link"):
        RunDirectory(tmp_path / "run").open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to somebody else")
def test_somebody_elses_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 12_345, 12_345)
    with pytest.raises(ConfigurationError, match="belongs to user 12345"):
        RunDirectory(tmp_path / "run").open()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    (tmp_path / "run").chmod(0o600)
    with pytest.raises(ConfigurationError, match="is not a directory"):
        RunDirectory(tmp_path / "run").open()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        RunDirectory(tmp_path / "run" / "below").open()


@pytest.fixture
def short() -> Iterator[Path]:
    """A private directory whose path leaves room for sockets, as pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="egk-test-") as directory:
        yield Path(directory)


def of_length(parent: Path, length: int) -> Path:
    """A path of so many bytes below `parent`."""
    return parent / ("x" * (length - len(str(parent)) - 1))


def elsewhere(run: Path) -> str:
    return f"egk-{os.geteuid()}-{hashlib.sha256(str(run).encode()).hexdigest()[:12]}"


def test_sockets_are_in_it_while_their_paths_fit_and_else_in_the_runtime_directory(short: Path) -> None:
    runtime = short / "runtime"
    runtime.mkdir(mode=0o700)
    environment = {"XDG_RUNTIME_DIR": str(runtime)}
    longest = of_length(short, SOCKET_PATH_LIMIT - len("/s/") - 12)
    assert len(str(longest)) == 92  # as docs/local-substrate.md says
    directory = RunDirectory(longest, environment=environment)
    directory.open()
    assert directory.sockets == longest / "s"
    assert len(directory.new_address()) == len("unix:") + SOCKET_PATH_LIMIT
    directory.close()
    assert list(runtime.iterdir()) == []

    longer = Path(f"{longest}x")
    directory = RunDirectory(longer, environment=environment)
    directory.open()
    assert directory.sockets == runtime / elsewhere(longer)
    assert mode(directory.sockets) == 0o700
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(directory.new_address().removeprefix("unix:"))
        assert len(directory.socket_addresses()) == 1
    assert not (longer / "s").exists()
    directory.close()
    assert len(list((runtime / elsewhere(longer)).iterdir())) == 1, "a member that lives on keeps its socket"
    directory.open()
    directory.remove_sockets(directory.socket_addresses())
    directory.close()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("kind", ["unset", "relative", "missing", "a file", "open to others", "long"])
def test_without_a_usable_runtime_directory_they_are_with_the_temporary_files(
    short: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    run = of_length(short, 200)
    runtime = {"relative": Path("runtime"), "long": of_length(short, 90)}.get(kind, short / "runtime")
    monkeypatch.chdir(short)
    if kind == "a file":
        runtime.touch()
    elif kind not in ("unset", "missing"):
        runtime.mkdir()
        runtime.chmod(0o777 if kind == "open to others" else 0o700)
    directory = RunDirectory(run, environment={} if kind == "unset" else {"XDG_RUNTIME_DIR": str(runtime)})
    directory.open()
    assert directory.sockets == short / elsewhere(run)
    directory.close()
    assert not directory.sockets.exists()


def test_where_sockets_fit_nowhere_both_paths_are_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = of_length(short, 90)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    run = of_length(short, 93)
    with pytest.raises(ConfigurationError, match=rf"{run} is too long by 1 bytes.*{temporary}.* by \d+\..*TMPDIR") as refusal:
        RunDirectory(run, environment={}).open()
    assert refusal.value.field == "run_directory"
    assert not run.exists()


@pytest.mark.parametrize("kind", ["a link", "a broken link", "a file", "open to others", "somebody else's"])
def test_a_trap_in_the_place_of_the_sockets_is_refused_and_kept(short: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    run = of_length(short, 200)
    place = short / elsewhere(run)
    (short / "mine").mkdir(mode=0o700)
    if kind == "a link":
        place.symlink_to(short / "mine")
        words = "is a symbolic link"
    elif kind == "a broken link":
        place.symlink_to(short / "nothing")
        words = "is a symbolic link"
    elif kind == "a file":
        place.touch(mode=0o600)
        words = "is not a directory"
    elif kind == "open to others":
        place.mkdir()
        place.chmod(0o755)
        words = "is open to other users"
    elif os.geteuid() != 0:
        pytest.skip("only root can give a directory to somebody else")
    else:
        place.mkdir(mode=0o700)
        os.chown(place, 12_345, 12_345)
        words = "belongs to user 12345"
    with pytest.raises(
        ConfigurationError, match=rf"{run} is so long that .* {place}, and that {words}.*--run-directory"
    ) as refusal:
        RunDirectory(run, environment={}).open()
    assert refusal.value.field == "run_directory"
    assert os.path.lexists(place)
    assert not (short / "nothing").exists()
    if place.is_dir() and not place.is_symlink():
        place.rmdir()
        again = RunDirectory(run, environment={})  # the refusal lets go of the lock
        again.open()
        again.close()


def test_removing_a_member_twice_is_no_error(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.open()
    address = directory.new_address()
    Path(address.removeprefix("unix:")).touch()
    other = Path(directory.new_address().removeprefix("unix:"))
    other.touch()
    directory.make_member("m")
    with pytest.raises(FileExistsError):
        directory.make_member("m")
    for _ in range(2):
        directory.remove_member("m", address=address)
    assert list(directory.members.iterdir()) == []
    assert list(directory.sockets.iterdir()) == [other]
    assert directory.socket_addresses() == {f"unix:{other}"}
    for _ in range(2):
        directory.remove_sockets({f"unix:{other}"})
    assert list(directory.sockets.iterdir()) == []
    directory.close()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_private(path, b"old")
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]
