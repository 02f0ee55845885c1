"""An image's key follows its Dockerfile, its base and what it copies; the archives we write are stable."""

import json
import tarfile
from pathlib import Path

import pytest

from testcluster import archives
from testcluster.base_image import BaseImage
from testcluster.builds import Builds, copied_paths
from testcluster.errors import ClusterError
from testcluster.layout import DOCKERFILES, Layout
from testcluster.steps import Step, pending

_DOCKERFILE = """
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE} AS builder
# COPY commented /out
COPY --chown=1000:100 one two/ /in/
copy three \\
     four /in/
FROM ${BASE_IMAGE}
COPY --from=builder /in /in
RUN echo COPY nothing /here
"""


def test_copied_paths_are_those_of_the_repository() -> None:
    assert copied_paths(_DOCKERFILE) == ("one", "two", "three", "four")


@pytest.fixture
def builds(tmp_path: Path) -> Builds:
    layout = Layout(cache=tmp_path / "cache")
    (tmp_path / "docker" / "small").mkdir(parents=True)
    (tmp_path / "docker" / "small" / "Dockerfile").write_text("FROM x\nCOPY source /in\n")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("one")
    return Builds(layout, BaseImage(layout), folder=tmp_path / "docker", context=tmp_path)


def test_an_images_tag_changes_with_what_it_copies_and_nothing_else(builds: Builds, tmp_path: Path) -> None:
    before = builds.reference("small")
    (tmp_path / "unrelated").write_text("x")
    assert builds.reference("small") == before
    (tmp_path / "source" / "file").write_text("two")
    assert builds.reference("small") != before


def test_an_unknown_image_is_named_beside_those_there_are(builds: Builds) -> None:
    with pytest.raises(ClusterError, match=r"there is no image big: .* has small"):
        builds.reference("big")


def test_a_step_is_pending_until_its_result_is_there(builds: Builds, tmp_path: Path) -> None:
    (step,) = builds.steps()
    assert step.name == "build image small"
    assert not step.done()
    done, left = Step("a", lambda: True, lambda: None), Step("b", lambda: False, lambda: None)
    assert pending([done, left, step]) == [left, step]


@pytest.mark.parametrize("path", sorted(DOCKERFILES.glob("*/Dockerfile")), ids=lambda path: path.parent.name)
def test_our_dockerfiles_build_elsewhere_too(path: Path) -> None:
    text = path.read_text()
    assert "ARG BASE_IMAGE=python:3.11-slim\nFROM ${BASE_IMAGE}\n" in text
    assert "\nUSER 1000:100\n" in text
    for copied in copied_paths(text):
        assert (DOCKERFILES.parent.parent / copied).exists(), copied


def test_an_archive_of_the_same_content_is_the_same_image(tmp_path: Path) -> None:
    def fill(layer: tarfile.TarFile) -> None:
        archives.add_folder(layer, "bin")
        archives.add_bytes(layer, "bin/program", b"\x7fELF", mode=0o755)

    config = archives.ImageConfig(entrypoint=("/bin/program",), user="65532")
    for name in ("a.tar", "b.tar"):
        archives.write_layer(tmp_path / name, reference="dev.local/x:1", config=config, fill=fill)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        manifest = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))[0]
        body = json.load(archive.extractfile(manifest["Config"]) or pytest.fail("no config"))
        assert manifest["RepoTags"] == ["dev.local/x:1"]
        assert body["config"]["User"] == "65532"
        assert body["rootfs"]["diff_ids"] == [f"sha256:{manifest['Layers'][0].removesuffix('.tar')}"]
