"""Opening a release: nothing that differs from what was registered gets through."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.weights.manifest import MANIFEST, Manifest
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Files = dict[str, NDArray[np.uint8]]


def _digest(files: Files) -> str:
    return Manifest.from_bytes(files[MANIFEST].tobytes()).digest


def test_a_sound_release_opens_completely(release_files: Files) -> None:
    """Contract, golden images and metrics come out as the manifest says."""
    release = open_release("m", "3", release_files, expect_digest=_digest(release_files))
    assert release.ident == (type(release.ident))("m", "3", _digest(release_files))
    assert release.contract.names == ("apple", "pear")
    assert release.golden[0].name == "0-bus.jpg"
    assert release.golden[0].data == b"picture"
    assert release.golden[0].expected.boxes.tolist() == [[1.0, 2.0, 30.5, 40.25]]
    assert release.metrics == {"mAP50-95": 0.5}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_any_flipped_bit_in_any_file_is_refused(release_files: Files, data: st.DataObject) -> None:
    """Law: one changed bit, wherever it is, and the release does not open."""
    expected = _digest(release_files)
    name = data.draw(st.sampled_from(sorted(release_files)))
    position = data.draw(st.integers(0, release_files[name].size - 1))
    changed = release_files[name].copy()
    changed[position] ^= np.uint8(1 << data.draw(st.integers(0, 7)))
    with pytest.raises(ReleaseRejectedError) as caught:
        open_release("m", "1", {**release_files, name: changed}, expect_digest=expected)
    assert caught.value.step == "verify"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_truncated_file_is_refused(release_files: Files, data: st.DataObject) -> None:
    """Law: a file shorter by any number of bytes does not open."""
    expected = _digest(release_files)
    name = data.draw(st.sampled_from(sorted(release_files)))
    size = data.draw(st.integers(0, release_files[name].size - 1))
    with pytest.raises(ReleaseRejectedError):
        open_release("m", "1", {**release_files, name: release_files[name][:size]}, expect_digest=expected)


@pytest.mark.parametrize("gone", [MANIFEST, "model.onnx", "golden/0-bus.jpg"])
def test_a_missing_file_is_named(release_files: Files, gone: str) -> None:
    """Half a release is refused, and the message says which half."""
    del release_files[gone]
    with pytest.raises(ReleaseRejectedError, match="manifest is missing" if gone == MANIFEST else gone):
        open_release("m", "1", release_files, expect_digest=None)


def test_an_extra_file_is_refused(release_files: Files) -> None:
    """What the manifest does not list has no business in a release."""
    release_files["extra.py"] = np.zeros(1, np.uint8)
    with pytest.raises(ReleaseRejectedError, match=r"extra\.py is not part"):
        open_release("m", "1", release_files, expect_digest=None)


def test_another_digest_than_the_registry_names_is_refused(release_files: Files) -> None:
    """A whole, sound release in the wrong place is still the wrong one."""
    with pytest.raises(ReleaseRejectedError, match="the registry names 000000000000"):
        open_release("m", "1", release_files, expect_digest="0" * 64)
    with pytest.raises(ReleaseRejectedError, match="names none"):
        open_release("m", "1", release_files, expect_digest="")


def test_a_release_of_another_model_is_refused(release_files: Files) -> None:
    """A release cannot be moved below another model's name."""
    with pytest.raises(ReleaseRejectedError, match="made for the model m, not n"):
        open_release("n", "1", release_files, expect_digest=None)


def test_the_signature_is_asked_last_and_can_refuse(release_files: Files) -> None:
    """The place of signing gets a digest that is known to be true, and its refusal stands."""
    asked: list[tuple[str, str, str]] = []

    def refuse(model: str, version: str, digest: str) -> None:
        asked.append((model, version, digest))
        message = "unsigned"
        raise ReleaseRejectedError(message, step="verify")

    with pytest.raises(ReleaseRejectedError, match="unsigned"):
        open_release("m", "7", release_files, expect_digest=None, verify_signature=refuse)
    assert asked == [("m", "7", _digest(release_files))]


def _store(files: Files, folder: Path) -> None:
    for name, array in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(array.tobytes())


def test_a_folder_reads_back_as_it_was_written(release_files: Files, tmp_path: Path) -> None:
    """Relative POSIX names, folders included."""
    _store(release_files, tmp_path)
    found = read_folder(tmp_path)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in release_files.items()
    }


def test_links_are_refused(tmp_path: Path) -> None:
    """A link in a release could pull in any file of the machine."""
    (tmp_path / "model.onnx").symlink_to("/etc/hostname")
    with pytest.raises(ReleaseRejectedError, match="link or a device"):
        read_folder(tmp_path)


def test_devices_are_refused(tmp_path: Path) -> None:
    """A pipe would block its reader for ever."""
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ReleaseRejectedError, match="link or a device"):
        read_folder(tmp_path)


def test_a_folder_over_the_limit_is_refused(tmp_path: Path) -> None:
    """The cap is on all files together."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(600))
    assert len(read_folder(tmp_path, max_bytes=1200)) == 2
    with pytest.raises(ReleaseRejectedError, match="more than"):
        read_folder(tmp_path, max_bytes=1199)


def test_an_unreadable_folder_is_a_passing_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails is not the release's own fault."""
    (tmp_path / "a").write_bytes(b"x")

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("models.weights.release.os.open", fail)
    with pytest.raises(ReleaseFaultError, match="Input/output error") as caught:
        read_folder(tmp_path)
    assert caught.value.step == "fetch"


def test_the_manifest_builder_makes_what_opens(make_manifest: Callable[..., Manifest]) -> None:
    """A release without golden images opens: the sight test refuses it, not the reader."""
    files = {"model.onnx": b"graph"}
    manifest = make_manifest(files, golden=())
    arrays = {"model.onnx": np.frombuffer(b"graph", np.uint8), MANIFEST: np.frombuffer(manifest.to_bytes(), np.uint8)}
    assert open_release("m", "1", arrays, expect_digest=manifest.digest).golden == ()
