"""The weights that ship with the package."""

from __future__ import annotations

import pytest

from models import demo


@pytest.mark.parametrize("version", [1, 2])
def test_the_weights_are_small(version: int) -> None:
    """Each version is at most 6 MB, so that a clone stays light."""
    assert 1_000_000 < demo.weights_path(version).stat().st_size <= 6_000_000


def test_the_second_version_is_measurably_better() -> None:
    """Both were measured on the same held-out scenes, and version 2 wins by more than noise."""
    assert float(demo.metrics(2)["map50_95"]) > float(demo.metrics(1)["map50_95"]) + 0.03
