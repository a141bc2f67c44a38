"""The manifest: canonical bytes, strict reading, a sound contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ReleaseRejectedError
from models.types import Thresholds
from models.weights.manifest import FileEntry, GoldenEntry, Manifest, Source, is_model_name

Make = Callable[..., Manifest]


@given(
    names=st.lists(st.text(min_size=1).filter(lambda name: name.strip()), min_size=1, max_size=5, unique=True),
    stride=st.sampled_from([8, 16, 32, 64]),
    times=st.integers(1, 20),
    dynamic=st.booleans(),
    conf=st.floats(0, 1),
    metric=st.floats(allow_nan=False, allow_infinity=False),
)
def test_reading_what_was_written_gives_the_same_manifest(
    *, names: list[str], stride: int, times: int, dynamic: bool, conf: float, metric: float
) -> None:
    """Law: from_bytes is the inverse of to_bytes, and the digest names the bytes."""
    manifest = Manifest(
        model="m",
        task="detect",
        names=tuple(names),
        stride=stride,
        imgsz=stride * times,
        head="raw",
        dynamic=dynamic,
        thresholds=Thresholds(conf=conf),
        files={"model.onnx": FileEntry("0" * 64, 1)},
        source=Source("f" * 64, 3, "onnx"),
        libraries={},
        metrics={"m": metric},
    )
    data = manifest.to_bytes()
    again = Manifest.from_bytes(data)
    assert again == manifest
    assert again.to_bytes() == data
    assert again.digest == manifest.digest


def test_the_order_of_construction_does_not_change_the_bytes(make_manifest: Make) -> None:
    """Two dicts with the same content in another order give the same canonical bytes."""
    assert (
        make_manifest(metrics={"a": 1.0, "b": 2.0}).to_bytes() == make_manifest(metrics={"b": 2.0, "a": 1.0}).to_bytes()
    )


def _mutated(manifest: Manifest, **changes: Any) -> bytes:
    raw = json.loads(manifest.to_bytes())
    raw.update(changes)
    return json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"surprise": 1}, "malformed"),
        ({"names": "apple"}, "malformed"),
        ({"names": []}, "no classes"),
        ({"names": ["a", "a"]}, "one class twice"),
        ({"names": ["a", " "]}, "empty class name"),
        ({"task": "segment"}, "only detectors"),
        ({"stride": 0}, "image size"),
        ({"imgsz": 321}, "image size"),
        ({"imgsz": True}, "malformed"),
        ({"head": "three"}, "head"),
        ({"dynamic": "yes"}, "malformed"),
        ({"thresholds": {"conf": 7, "iou": 0.7, "max_det": 300}}, "malformed"),
        ({"files": {}}, "no model.onnx"),
        ({"files": {"model.onnx": {"sha256": "x", "size": 1}}}, "digest and size"),
        ({"files": {"model.onnx": {"sha256": "0" * 64}}}, "malformed"),
        ({"source": {"sha256": "short", "size": 1, "format": "pt"}}, "source"),
        ({"golden": [{"file": "golden/x.jpg", "shape": [1, 1], "boxes": [], "scores": [], "classes": []}]}, "golden"),
        ({"model": "../up"}, "model name"),
    ],
)
def test_an_unsound_field_is_refused_with_its_reason(make_manifest: Make, changes: dict[str, Any], words: str) -> None:
    """Every wrong field ends in a permanent rejection that names it, never in another exception."""
    with pytest.raises(ReleaseRejectedError, match=words) as caught:
        Manifest.from_bytes(_mutated(make_manifest(), **changes))
    assert caught.value.step == "contract"


@pytest.mark.parametrize("name", ["../evil", "/abs", "golden/../../x", "golden/a/b.jpg", "manifest.json", ""])
def test_a_file_name_outside_the_release_is_refused(make_manifest: Make, name: str) -> None:
    """No manifest can name a file outside the release's own two folders."""
    entry = {"sha256": "0" * 64, "size": 1}
    with pytest.raises(ReleaseRejectedError, match="file name"):
        Manifest.from_bytes(_mutated(make_manifest(golden=()), files={"model.onnx": entry, name: entry}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": (2,)}, "does not name"),
        ({"scores": (1.5,)}, "outside 0 to 1"),
        ({"scores": ()}, "differ in number"),
        ({"boxes": ((0.0, 0.0, float("inf"), 1.0),)}, "not finite"),
    ],
)
def test_unsound_golden_expectations_are_refused(make_manifest: Make, changes: dict[str, Any], words: str) -> None:
    """Expected boxes must fit the classes and be numbers."""
    sound: dict[str, Any] = {
        "file": "golden/0-bus.jpg",
        "shape": (1, 1),
        "boxes": ((0.0, 0.0, 1.0, 1.0),),
        "scores": (0.5,),
        "classes": (0,),
    }
    with pytest.raises(ReleaseRejectedError, match=words):
        make_manifest(golden=(GoldenEntry(**(sound | changes)),))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_bytes_that_are_no_manifest_fail_verification(data: bytes) -> None:
    """Garbage is refused at the step verify."""
    with pytest.raises(ReleaseRejectedError) as caught:
        Manifest.from_bytes(data)
    assert caught.value.step == "verify"


def test_other_bytes_of_the_same_content_are_refused(make_manifest: Make) -> None:
    """Only canonical bytes count, so one manifest has one digest."""
    pretty = json.dumps(json.loads(make_manifest().to_bytes()), indent=1).encode()
    with pytest.raises(ReleaseRejectedError, match="canonical"):
        Manifest.from_bytes(pretty)


@pytest.mark.parametrize(
    ("name", "good"),
    [("yolo26n", True), ("a.b-c_1", True), ("", False), ("a/b", False), ("-a", False), ("a" * 65, False)],
)
def test_model_names(name: str, *, good: bool) -> None:
    """A model name is safe as a file name and as a URL's segment."""
    assert is_model_name(name) is good
