"""What the rollout actor and its connection do without Ray: fingerprints, and what the cache keeps."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import SecretStr

from models.rollout.messages import Target
from models.rollout.policy import Pin, encode_pin
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.retention import Rule
from serve.rollout import fingerprint, prune
from serve.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO, THREE, FOUR, FIVE = ("ab" * 32, "cd" * 32, "ef" * 32, "01" * 32, "23" * 32)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"models": ("b", "a")}, True),
        ({"log_level": "debug"}, True),
        ({"admin_key": SecretStr("secret")}, True),
        ({"models": ("a", "b", "c")}, False),
        ({"registry_uri": "http://elsewhere"}, False),
        ({"hold_deadline_s": 0.3}, False),
        ({"prepare_timeout_s": 60.0}, False),
        ({"poll_interval_s": 1.0}, False),
        ({"quality_tolerance": 0.01}, False),
        ({"latency_factor": 3.0}, False),
        ({"trial_images": 10}, False),
        ({"probation_s": 0.0}, False),
        ({"allow_fault_injection": True}, False),
        ({"webhook_secret": SecretStr("secret")}, True),
        ({"keep_versions": 3}, False),
        ({"keep_days": 3.0}, False),
    ],
)
def test_a_fingerprint_changes_with_what_the_actor_works_with(
    tmp_path: Path, change: dict[str, Any], *, same: bool
) -> None:
    """And with nothing else, so that no actor is ended for a log level."""
    before = Settings(home=tmp_path, models=("a", "b"))
    after = before.model_copy(update=change)
    assert (fingerprint(before) == fingerprint(after)) is same


def test_the_cache_keeps_the_last_good_releases_of_models_that_are_not_served_now(tmp_path: Path) -> None:
    """A redeployment with fewer models takes nothing from those that come back later."""
    cache, store = ReleaseCache(tmp_path), CommittedStore(tmp_path)
    for digest in (ONE, TWO, THREE, FOUR):
        cache.put(digest, {"f": np.zeros(1, np.uint8)})
    store.save(Committed("other", 5, "2", TWO, "1", THREE))
    prune(cache, store, frozenset({ONE}))
    assert [digest for digest in (ONE, TWO, THREE, FOUR) if cache.get(digest) is not None] == [ONE, TWO, THREE]


def test_the_cache_keeps_what_the_rule_keeps(tmp_path: Path) -> None:
    """Beside what is in use, pins of models that are not served now included: the newest, and the young."""
    cache, store = ReleaseCache(tmp_path), CommittedStore(tmp_path)
    now = datetime(2026, 11, 22, tzinfo=UTC)
    for age, digest in enumerate((FIVE, FOUR, THREE, TWO, ONE)):
        cache.put(digest, {"f": np.zeros(1, np.uint8)})
        moment = now.timestamp() - 86_400.0 * age
        os.utime(tmp_path / "releases" / digest, (moment, moment))
    pin = encode_pin(Pin(Target("1", ONE, "p"), ("q", "9")))
    store.save(Committed("other", 5, "9", "99" * 32, pin=pin))

    def left() -> list[str]:
        return [item.name for item in cache.stored()]

    assert left() == [ONE, TWO, THREE, FOUR, FIVE]
    prune(cache, store, frozenset(), Rule(1, 2.5), now=lambda: now)
    assert left() == [ONE, THREE, FOUR, FIVE]
    prune(cache, store, frozenset({THREE}), Rule(1, 0.0), now=lambda: now)
    assert left() == [ONE, THREE, FIVE]
