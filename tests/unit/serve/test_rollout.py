"""What the rollout actor and its connection do without Ray: fingerprints, and what the cache keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import SecretStr

from models.weights.cache import Committed, CommittedStore, ReleaseCache
from serve.rollout import fingerprint, prune
from serve.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO, THREE, FOUR = ("ab" * 32, "cd" * 32, "ef" * 32, "01" * 32)


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
        ({"allow_fault_injection": True}, False),
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
