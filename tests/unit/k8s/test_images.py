"""Images are found wherever they are named, and pinned in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pin
from checks import images
from k8s_folder import K8S

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

DIGEST = "sha256:" + "5" * 64
FAKE = """#!/bin/sh
# Answers as `docker buildx imagetools inspect IMAGE --format ...` does.
case "$4" in redis:*) test -e {folder}/redis-is-there || exit 1 ;; esac
echo {digest}
"""


def fake_docker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a Fake docker first on the path, which knows every image but, at first, redis."""
    (folder / "bin").mkdir()
    docker = folder / "bin" / "docker"
    docker.write_text(FAKE.format(folder=folder, digest=DIGEST), encoding="utf-8")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")


def test_images_are_found_in_every_kind_of_file() -> None:
    """A Dockerfile's argument and a list's and a mapping's image are found, comments and other fields are not."""
    text = "ARG BASE_IMAGE=a:1\nservices:\n  x:\n    image: b:2\n- image: c:3\n# image: d:4\nimagePullPolicy: e\n"

    assert images.images_in(text) == ["a:1", "b:2", "c:3"]


def test_own_images_are_told_apart() -> None:
    """What is built here has no digest before it is built."""
    assert images.is_own("steelyard:0.1.0")
    assert images.is_own(f"steelyard-cuda:0.1.0@{DIGEST}")
    assert not images.is_own("example.com/steelyards:1")


def test_every_file_of_the_folder_names_versions() -> None:
    """No image of ours floats, and the same program has one version everywhere."""
    assert images.check_images(K8S, release=False).errors == []
    named = {image for file in images.image_files(K8S) for image in images.images_in(file.read_text(encoding="utf-8"))}
    programs = [image.partition(":")[0] for image in named]
    assert sorted(set(programs)) == sorted(programs)


def test_pinning_writes_digests_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `make pin` a release finds nothing to complain of, and a second run changes nothing."""
    fake_docker(folder.parent, monkeypatch)
    (folder.parent / "redis-is-there").touch()

    assert pin.main([str(folder)]) == 0
    assert images.check_images(folder, release=True).errors == []
    pinned = {file: file.read_text(encoding="utf-8") for file in images.image_files(folder)}
    assert pin.main([str(folder)]) == 0
    assert pinned == {file: file.read_text(encoding="utf-8") for file in images.image_files(folder)}


def test_one_unknown_image_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the registry does not know an image, no file is half pinned, and it is named."""
    fake_docker(folder.parent, monkeypatch)
    before = {file: file.read_text(encoding="utf-8") for file in images.image_files(folder)}

    assert pin.main([str(folder)]) == 1
    assert "redis:" in capsys.readouterr().err
    assert before == {file: file.read_text(encoding="utf-8") for file in images.image_files(folder)}
