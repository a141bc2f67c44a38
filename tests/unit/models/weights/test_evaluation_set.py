"""The evaluation set: which files count, and what its digest stands for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from models.errors import EvaluationError
from models.weights.evaluation_set import open_set


def make(folder: Path, **changes: object) -> Path:
    """Write two images, one of them labelled, in Ultralytics' layout; return the data.yaml."""
    for name in ("images", "labels"):
        (folder / name / "val").mkdir(parents=True)
    (folder / "images" / "val" / "b.jpg").write_bytes(b"second")
    (folder / "images" / "val" / "a.jpg").write_bytes(b"first")
    (folder / "labels" / "val" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    data = folder / "data.yaml"
    content = {"val": "images/val", "names": {0: "apple", 1: "pear"}} | changes
    data.write_text(yaml.safe_dump(content), encoding="utf-8")
    return data


def test_images_have_their_labels_beside_them(tmp_path: Path) -> None:
    """The last folder ``images`` becomes ``labels``; an image without a label file is background."""
    found = open_set(make(tmp_path / "images" / "set"))
    assert [(each.name, each.label is None) for each in found.samples] == [("a.jpg", False), ("b.jpg", True)]
    assert (found.name, found.classes) == ("set/data.yaml", {0: "apple", 1: "pear"})


def test_the_digest_names_the_content_not_the_place(tmp_path: Path) -> None:
    """A copy elsewhere, listed by a file instead of a folder, is the same data."""
    data = make(tmp_path / "one")
    digest = open_set(data).digest()
    assert len(digest) == 64
    copy = tmp_path / "two"
    shutil.copytree(tmp_path / "one", copy)
    lines = [f"{copy}/images/val/b.jpg", f"{copy}/images/val/a.jpg", f"{copy}/images/val/a.jpg"]
    (copy / "val.txt").write_text("\n".join(lines), encoding="utf-8")
    (copy / "data.yaml").write_text("val: val.txt\nnames: [apple, pear]\n", encoding="utf-8")
    again = open_set(copy / "data.yaml")
    assert again.digest() == digest
    assert again.classes == {0: "apple", 1: "pear"}


@pytest.mark.parametrize("change", ["image", "label", "new label", "name", "fewer"])
def test_every_change_of_the_data_changes_the_digest(tmp_path: Path, change: str) -> None:
    """An image's bytes, a label's, a label where none was, a name, an image less."""
    data = make(tmp_path)
    before = open_set(data).digest()
    images, labels = tmp_path / "images" / "val", tmp_path / "labels" / "val"
    match change:
        case "image":
            (images / "a.jpg").write_bytes(b"other")
        case "label":
            (labels / "a.txt").write_text("1 0.5 0.5 0.1 0.1\n", encoding="utf-8")
        case "new label":
            (labels / "b.txt").write_text("", encoding="utf-8")
        case "name":
            (images / "b.jpg").rename(images / "c.jpg")
        case "fewer":
            (images / "b.jpg").unlink()
    assert open_set(data).digest() != before


def test_class_ids_must_mean_the_same_to_the_version(tmp_path: Path) -> None:
    """It may have more of them than the data, never others."""
    found = open_set(make(tmp_path))
    found.check_classes(("apple", "pear"))
    found.check_classes(("apple", "pear", "plum"))
    with pytest.raises(EvaluationError, match=r"'pear' in the data .* and is 'plum'"):
        found.check_classes(("apple", "plum"))
    with pytest.raises(EvaluationError, match="does not exist in the version"):
        found.check_classes(("apple",))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val": "nowhere"}, "lists 0 images"),
        ({"val": ["images/val", "list.txt"]}, "which does not exist"),
        ({"val": None}, "names no validation images"),
        ({"names": "apple"}, "class names"),
        ({"names": {"a": "apple"}}, "class names"),
    ],
)
def test_a_set_that_is_none_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    """In one sentence about the data."""
    data = make(tmp_path, **changes)
    (tmp_path / "list.txt").write_text("./gone.jpg\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=words):
        open_set(data)


def test_data_without_labels_or_without_a_yaml_is_refused(tmp_path: Path) -> None:
    """Nothing could be computed."""
    data = make(tmp_path)
    (tmp_path / "labels" / "val" / "a.txt").unlink()
    with pytest.raises(EvaluationError, match="No image"):
        open_set(data)
    with pytest.raises(EvaluationError, match="cannot be read"):
        open_set(Path(tmp_path / "none.yaml"))
