"""What a person meets: progress, the lock, one-line errors; and what keeps a build from outliving us."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testcluster import __main__ as command
from testcluster import host, lock, pins, shell
from testcluster.errors import BusyError, CommandError, UnsupportedMachineError
from testcluster.layout import API_SERVER, NODE_ADDRESS, REPOSITORY, Layout
from testcluster.pki import IDENTITIES
from testcluster.processes import Process, until
from testcluster.progress import Progress


def test_progress_names_the_part_its_place_and_the_last_time(tmp_path: Path) -> None:
    out = io.StringIO()
    for _ in range(2):
        with Progress(times=tmp_path / "times.json", out=out).step("compile x", number=2, total=14):
            pass
    first, done, second, _ = out.getvalue().splitlines()
    assert first == "[2/14] compile x"
    assert done.startswith("[2/14] compile x: ")
    assert second.startswith("[2/14] compile x")


def test_quiet_phases_print_nothing_but_are_timed(tmp_path: Path) -> None:
    out = io.StringIO()
    with Progress(times=tmp_path / "times.json", out=out).phase("keys"):
        pass
    assert out.getvalue() == ""
    assert '"keys"' in (tmp_path / "times.json").read_text()


def test_unreadable_times_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text("not JSON")
    with Progress(times=tmp_path / "times.json", out=io.StringIO()).phase("keys"):
        pass


def test_the_lock_tells_who_holds_it_and_is_free_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    refusal = pytest.raises(BusyError, match=rf"`scripts/cluster up` with pid {os.getpid()}")
    with lock.held(path, doing="up"), refusal, lock.held(path, doing="down"):
        pass
    with lock.held(path, doing="down"):
        pass


def test_a_failure_is_one_line_with_the_end_of_what_was_said() -> None:
    with pytest.raises(CommandError, match=r"^the part failed with 3: first \| last$"):
        shell.run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"], name="the part")


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-program is not installed"):
        shell.run(["no-such-program"])


def test_daemons_do_not_inherit_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("KUBECONFIG", "/elsewhere")
    assert {"HTTPS_PROXY", "KUBECONFIG"}.isdisjoint(shell.clean_environment())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")
def test_a_guarded_build_dies_with_whoever_started_it(tmp_path: Path) -> None:
    mark = f"sleep 98{os.getpid()}"
    program = f"import subprocess, sys; subprocess.run({shell.guarded(['sh', '-c', f'{mark} & wait'])!r})"
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)

    def there() -> bool:
        return any(_command(folder) == mark for folder in Path("/proc").iterdir() if folder.name.isdigit())

    assert until(there, timeout=10)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert until(lambda: not there(), timeout=5)


def _command(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def test_a_process_is_not_mistaken_for_a_later_one_with_its_number() -> None:
    assert not Process(pid=os.getpid(), started=1).alive
    Process(pid=os.getpid(), started=1).kill(signal.SIGKILL)


def test_another_system_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnsupportedMachineError, match="needs Linux"):
        host.check()


def test_anybody_but_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UnsupportedMachineError, match=r"needs root: run `sudo -E scripts/cluster"):
        host.check()


def test_an_old_or_missing_go_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho go1.19.8\n")
    go.chmod(0o755)
    for path in (str(tmp_path) + ":/usr/bin:/bin", "/nowhere"):
        monkeypatch.setenv("PATH", path)
        with pytest.raises(UnsupportedMachineError, match=r"Go 1\.25 or newer: put `go` on PATH"):
            host.check_go()


def test_missing_packages_without_apt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedMachineError, match="runc conntrack"):
        host.install_packages(("runc", "conntrack"))


def test_the_cache_follows_the_users_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    layout = Layout.default()
    assert layout.cache == tmp_path / "eg-knative" / "cluster"
    assert layout.state.parent == layout.cache


def test_the_servers_certificate_covers_the_address_that_clients_use() -> None:
    server = next(identity for identity in IDENTITIES if identity.file == "apiserver")
    assert NODE_ADDRESS in API_SERVER
    assert f"IP:{NODE_ADDRESS}" in server.alternatives


def test_asking_for_what_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words in (["kubeconfig"], ["logs", "nobody"]):
        assert command.main(words) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert command.main(["status"]) == 1
    assert capsys.readouterr().out.startswith("the test cluster is down\n")


def test_the_entry_finds_its_python_and_keeps_the_callers_folder(tmp_path: Path) -> None:
    began = time.monotonic()
    entry = str(REPOSITORY / "scripts" / "cluster")
    environment = {**os.environ, "PYTHON": sys.executable, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([entry, "status"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stdout.startswith("the test cluster is down\n")
    assert time.monotonic() - began < 10


def test_no_registry_or_local_path_is_written_down() -> None:
    words = ("proxy.golang" + ".org", "pypi" + ".org", "deb.debian" + ".org", "/ro" + "ot/")
    folders = [REPOSITORY / "testcluster", REPOSITORY / "etc" / "docker"]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        assert not [word for word in words if word in path.read_text()], path


def test_every_pinned_command_is_one_of_ours() -> None:
    tools = [tool for name in pins.GO_MODULES for tool in pins.go_module(name).tools]
    assert len(tools) == len(set(tools)) == 13
