from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from eg_knative.errors import ConfigurationError
from eg_knative.substrates.local_directory import SOCKET_PATH_LIMIT, RunDirectory, write_private


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
    with pytest.raises(ConfigurationError, match="cannot be used"):
        RunDirectory(tmp_path / "run").open()


def test_the_longest_path_fits_and_one_more_does_not(tmp_path: Path) -> None:
    room = SOCKET_PATH_LIMIT - len("/s/") - 12
    longest = tmp_path / ("x" * (room - len(str(tmp_path)) - 1))
    directory = RunDirectory(longest)
    directory.open()
    assert len(directory.new_address()) == len("unix:") + SOCKET_PATH_LIMIT
    directory.close()
    with pytest.raises(ConfigurationError, match=r"too long by 1 bytes.*Choose a shorter path"):
        RunDirectory(Path(f"{longest}x")).open()
    assert not Path(f"{longest}x").exists()


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
