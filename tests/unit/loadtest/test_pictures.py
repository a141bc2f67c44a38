"""The pictures of a load and their order."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pictures
import pytest
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path


@given(count=st.integers(1, 60), seed=st.integers(0, 2**32), passes=st.integers(1, 4))
def test_every_pass_holds_every_picture_once(count: int, seed: int, passes: int) -> None:
    """No picture is asked more often than another, and a seed fixes the order."""
    drawn = list(islice(pictures.order(count, seed), count * passes))

    for number in range(passes):
        assert sorted(drawn[number * count : (number + 1) * count]) == list(range(count))
    assert drawn == list(islice(pictures.order(count, seed), count * passes))


def test_passes_differ() -> None:
    """A server that remembers the order gains nothing."""
    drawn = list(islice(pictures.order(50, 0), 100))

    assert drawn[:50] != drawn[50:]


def test_a_folder_gives_its_pictures_and_a_file_itself(tmp_path: Path) -> None:
    """Folders are searched through; other files are left out."""
    (tmp_path / "deep").mkdir()
    for name in ("b.jpg", "a.PNG", "deep/c.webp", "notes.txt"):
        (tmp_path / name).touch()

    assert [path.name for path in pictures.find(tmp_path)] == ["a.PNG", "b.jpg", "c.webp"]
    assert pictures.find(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_no_pictures_are_refused(tmp_path: Path) -> None:
    """A load without pictures would measure errors."""
    with pytest.raises(ValueError, match="neither a picture nor a folder"):
        pictures.find(tmp_path / "none")
    with pytest.raises(ValueError, match="at least one"):
        next(pictures.order(0, 0))
