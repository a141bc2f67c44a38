"""Where golden images come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from models.errors import ConversionError
from models.weights import pictures
from models.weights.pictures import collect

if TYPE_CHECKING:
    from pathlib import Path


def _fill(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index:03d}.jpg").write_bytes(b"%d" % index)


def test_a_folder_gives_its_pictures_evenly(tmp_path: Path) -> None:
    """At most 16, spread over all; other files and folders are passed over."""
    _fill(tmp_path / "golden", 32)
    (tmp_path / "golden" / "notes.txt").write_text("no")
    (tmp_path / "golden" / "more.jpg").mkdir()
    found = collect(tmp_path / "golden")
    assert [picture.name for picture in found] == [f"{index:03d}.jpg" for index in range(0, 32, 2)]
    assert found[1].data == b"2"


def test_a_huge_picture_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no replica would accept is no golden image either."""
    _fill(tmp_path, 2)
    (tmp_path / "000.jpg").write_bytes(bytes(100))
    monkeypatch.setattr(pictures, "MAX_BYTES", 50)
    assert [picture.name for picture in collect(tmp_path)] == ["001.jpg"]


@pytest.mark.parametrize(
    ("val", "expected"), [("images/val", ["000.jpg", "001.jpg"]), (["images/val", "list.txt"], ["000.jpg", "001.jpg"])]
)
def test_a_data_set_gives_its_validation_images(tmp_path: Path, val: object, expected: list[str]) -> None:
    """Folders, list files, or both, below the entry ``path``."""
    _fill(tmp_path / "root" / "images" / "val", 2)
    _fill(tmp_path / "root" / "other", 1)
    (tmp_path / "root" / "list.txt").write_text("./other/000.jpg\n")
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"path": "root", "val": val}))
    found = [picture.name for picture in collect(None, data)]
    assert found[:2] == expected
    assert len(found) == (2 if isinstance(val, str) else 3)


def test_a_data_set_beside_its_yaml_is_found(tmp_path: Path) -> None:
    """Ultralytics writes absolute paths of the machine that trained; the yaml's own folder is tried then."""
    _fill(tmp_path / "val", 1)
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"path": "/nowhere", "val": "val"}))
    assert len(collect(None, data)) == 1


@pytest.mark.parametrize("text", ["", "names: [a]", ":\n- [", "val: missing"])
def test_an_unusable_data_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    """Empty, without ``val``, no YAML, images missing."""
    data = tmp_path / "data.yaml"
    data.write_text(text)
    with pytest.raises(ConversionError, match=r"data\.yaml"):
        collect(None, data)
    with pytest.raises(ConversionError, match="cannot be read"):
        collect(None, tmp_path / "missing.yaml")


def test_a_folder_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    """Empty or absent."""
    with pytest.raises(ConversionError, match="holds no readable"):
        collect(tmp_path)
    with pytest.raises(ConversionError, match="does not exist"):
        collect(tmp_path / "absent")


def test_the_packages_ship_pictures() -> None:
    """Without a choice there is always something to look at."""
    assert "bus.jpg" in [picture.name for picture in collect()]
