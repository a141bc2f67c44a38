"""Translations between MLflow's terms and the port's."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.weights import mlflow_entities as entities


@given(st.text(), st.text(min_size=1))
def test_a_promotion_tag_counts_for_its_own_version_only(identity: str, version: str) -> None:
    """Law: the id comes back for the version that the tag names, and for no other."""
    tag = json.dumps({"id": identity, "version": version})
    assert entities.promotion_id(tag, version) == identity
    assert entities.promotion_id(tag, version + "0") == f"alias:{version}0"


@given(st.none() | st.text())
def test_any_other_tag_means_that_the_alias_speaks(tag: str | None) -> None:
    """Law: no text in the tag breaks the reader."""
    assert entities.promotion_id(tag, "3").startswith("alias:") or '"version"' in (tag or "")


@pytest.mark.parametrize(("name", "allowed"), [("mAP50-95(B)", "mAP50-95_B_"), ("metrics/mAP50", "metrics/mAP50")])
def test_metric_names_are_made_acceptable(name: str, allowed: str) -> None:
    """Ultralytics' own metric names hold brackets."""
    assert entities.metric_name(name) == allowed
