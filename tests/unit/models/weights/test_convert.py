"""The parent's half of a conversion: it trusts neither the file nor what the child hands back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from models.errors import ConversionError
from models.weights import convert as module
from models.weights.convert import convert, hash_source, source_format
from models.weights.manifest import MANIFEST
from models.weights.pictures import Picture
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESULT: dict[str, Any] = {
    "names": ["apple"],
    "stride": 32,
    "imgsz": 320,
    "head": "raw",
    "dynamic": True,
    "golden": [],
    "libraries": {"onnx": "1"},
    "parity": {},
}


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sets what the child leaves behind and answers."""

    def answers(result: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        def run(_: str, request: dict[str, Any], scratch: Path, **__: Any) -> dict[str, Any]:
            for name, data in ({"model.onnx": b"graph"} if files is None else files).items():
                (scratch / "output" / name).write_bytes(data)
            assert (scratch / "pictures" / "00-p.jpg").read_bytes() == b"p"
            assert request["format"] == "pt"
            return result

        monkeypatch.setattr(module.sandbox, "run_sandboxed", run)

    return answers


def _convert(tmp_path: Path) -> Any:
    source, destination = tmp_path / "best.pt", tmp_path / "release"
    source.write_bytes(b"weights")
    destination.mkdir()
    return convert(source, destination, model="m", pictures=[Picture("p.jpg", b"p")], metrics={"mAP": 0.5})


def test_the_release_opens_and_names_its_source(child: Callable[..., None], tmp_path: Path) -> None:
    """What lands in the destination is verified and complete."""
    child(RESULT)
    manifest = _convert(tmp_path)
    files = read_folder(tmp_path / "release")
    assert set(files) == {MANIFEST, "model.onnx"}
    release = open_release("m", "1", files, expect_digest=manifest.digest)
    assert release.metrics == {"mAP": 0.5}
    assert manifest.source.sha256 == hash_source(tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("changes", "files"),
    [
        ({"names": []}, None),
        ({"names": None}, None),
        ({"imgsz": 33}, None),
        ({"head": "evil"}, None),
        ({"golden": [{"file": "golden/none.jpg"}]}, None),
        ({"parity": {"x": float("nan")}}, None),
        ({}, {}),
        ({}, {"model.onnx": b"x", "run me.sh": b"x"}),
    ],
)
def test_a_child_that_hands_back_nonsense_is_refused(
    child: Callable[..., None], tmp_path: Path, changes: dict[str, Any], files: dict[str, bytes] | None
) -> None:
    """It opened an untrusted file, so its word is checked like one."""
    child(RESULT | changes, files)
    with pytest.raises(ConversionError):
        _convert(tmp_path)
    assert list((tmp_path / "release").iterdir()) == []


def test_a_link_left_by_the_child_is_refused(
    monkeypatch: pytest.MonkeyPatch, child: Callable[..., None], tmp_path: Path
) -> None:
    """It would pull a file of the machine into the release."""
    child(RESULT)
    run = module.sandbox.run_sandboxed

    def with_link(name: str, request: dict[str, Any], scratch: Path, **options: Any) -> dict[str, Any]:
        (scratch / "output" / "model.yaml").symlink_to("/etc/hostname")
        return run(name, request, scratch, **options)

    monkeypatch.setattr(module.sandbox, "run_sandboxed", with_link)
    with pytest.raises(ConversionError, match="link"):
        _convert(tmp_path)


def test_a_file_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything else happens with it."""
    monkeypatch.setattr(module, "MAX_SOURCE_BYTES", 3)
    with pytest.raises(ConversionError, match="larger than"):
        _convert(tmp_path)


def test_formats_go_by_the_suffix(tmp_path: Path) -> None:
    """In any case of letters."""
    assert source_format(tmp_path / "A.PT") == "pt"
    assert source_format(tmp_path / "a.onnx") == "onnx"
    with pytest.raises(ConversionError, match="neither"):
        source_format(tmp_path / "a.pth")
