"""The tables of growing work, and the drawings of results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import scaling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def photograph() -> bytes:
    """Return a JPEG of noise that is smooth enough to be resized."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", cv2.resize(noise, (400, 300)))[1])


@pytest.mark.parametrize("wanted", [8 * 1024, 300 * 1024])
def test_a_photograph_grows_to_about_the_bytes_wanted(wanted: int) -> None:
    """It stays a JPEG, a seventh from its size at most, and keeps its shape."""
    made = scaling.enlarged(photograph(), wanted)
    height, width = cv2.imdecode(np.frombuffer(made, np.uint8), cv2.IMREAD_COLOR).shape[:2]

    assert abs(len(made) - wanted) < 0.2 * wanted
    assert abs(width / height - 4 / 3) < 0.05


def test_what_is_no_picture_cannot_grow() -> None:
    """A broken set is told from a slow service."""
    with pytest.raises(ValueError, match="cannot be decoded"):
        scaling.enlarged(b"text", 1000)


def result_of(make_result: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Return a result of scaling.py with one table of two rows."""
    load = {"rate": 50.0, "p50_ms": 20.0, "p99_ms": None, "failed": 1, "refused": 2}
    first = load | {"rate": 40.0}
    rows = [{"title": title, "load": load, "first": first, "cpu_ms": 30.0, "pss_mib": 812.0} for title in ("1", "2")]
    return {"machine": make_result()["machine"], "tables": {"clients": rows}}


def test_a_table_has_a_row_a_step(make_result: Callable[..., dict[str, Any]]) -> None:
    """What failed and what was refused stand beside the rate."""
    text = scaling.markdown(result_of(make_result))

    assert "| 2 | 50 | 40 | 20 | - | 30 | 812 | 6 |" in text


def test_both_results_are_drawn(tmp_path: Path, make_result: Callable[..., dict[str, Any]]) -> None:
    """An SVG lies beside each, the same bytes every time."""
    (tmp_path / "bench.json").write_text(json.dumps(make_result()))
    (tmp_path / "scaling.json").write_text(json.dumps(result_of(make_result)))
    paths = [str(tmp_path / name) for name in ("bench.json", "scaling.json")]
    import plot  # noqa: PLC0415 - matplotlib takes most of a second to import

    plot.main(paths)
    first = [(tmp_path / name).read_bytes() for name in ("bench.svg", "scaling.svg")]
    plot.main(paths)

    assert first == [(tmp_path / name).read_bytes() for name in ("bench.svg", "scaling.svg")]
    assert all(b"<svg" in each for each in first)


@pytest.mark.parametrize("arguments", [["--only", "colours"], ["--seconds", "0"], ["--weights", "none.pt"]])
def test_senseless_options_are_refused(tmp_path: Path, arguments: list[str]) -> None:
    """What cannot be measured is refused before anything starts."""
    (tmp_path / "a.pt").touch()
    with pytest.raises(SystemExit) as caught:
        scaling.parse(["--weights", str(tmp_path / "a.pt"), "--images", str(tmp_path), *arguments])

    assert caught.value.code == 2


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    """The path is named."""
    (tmp_path / "x.json").write_text("{")
    import plot  # noqa: PLC0415 - as above

    with pytest.raises(SystemExit) as caught:
        plot.main([str(tmp_path / "x.json")])

    assert caught.value.code == 2
