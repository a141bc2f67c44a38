"""What the rollout actor does without Ray: orders and hints, its fingerprint, and what the cache keeps."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from models.engine.priority import NICENESS
from models.rollout.messages import Target
from models.rollout.order import Order
from models.rollout.policy import Pin, encode_pin
from models.weights.cache import Committed, CommittedStore, ReleaseCache
from models.weights.retention import Rule
from serve import rollout_actor
from serve.rollout_actor import RolloutActor, _threads, fingerprint, prune
from serve.rollout_client import RolloutClient
from serve.settings import Settings
from serve.webhook import Deliveries, Delivery

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
        ({"strict_isolation_s": 10.0}, False),
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
        ({"require_signed": True}, False),
        ({"keys": Path("elsewhere")}, False),
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


class FakeModel:
    """Stands for the reconciler of a model; keeps what it is asked."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self.asked: list[tuple[object, ...]] = []

    def hint(self) -> None:
        """Keep it."""
        self.asked.append(("hint",))

    async def promote(self, *order: object) -> None:
        """Keep it."""
        self.asked.append(("promote", *order))

    def status(self) -> dict[str, object]:
        """Return a state."""
        return {"model": "m"}


def asking(model: FakeModel) -> RolloutClient:
    """Return a client of an actor of this one model, with no Ray in between."""
    actor = object.__new__(RolloutActor)
    actor._models = {"m": model}  # type: ignore[dict-item]
    actor._deliveries = Deliveries()
    actor._begun = asyncio.Event()
    actor._begun.set()
    methods = {name: SimpleNamespace(remote=getattr(actor, name)) for name in ("hint", "promote")}
    return RolloutClient(SimpleNamespace(**methods), renew=None)  # type: ignore[arg-type]


async def test_what_is_promoted_and_how_reaches_the_reconciler() -> None:
    """Version, reason, person and order, each in its place on the way through client and actor."""
    model, order = FakeModel(), Order(force="hot fix", canary=(0.05,))
    client = asking(model)
    assert await client.promote("m", "2", reason="why", who="somebody", order=order) == {"model": "m"}
    await client.promote("m", "3")
    assert model.asked == [
        ("promote", "2", "why", "somebody", order),
        ("promote", "3", "promote", "operator", Order()),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
async def test_the_actors_threads_give_way() -> None:
    """Registry and disk wait for replicas that answer on the same cores, not the other way round."""
    niceness = await _threads(1, "disk")(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert niceness >= NICENESS


async def test_the_actor_spares_what_stays_once_after_its_first_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's client is imported by then; every further collection of everything would halt it again."""
    spared: list[None] = []
    monkeypatch.setattr(rollout_actor, "spare_what_stays", lambda: spared.append(None))
    actor = object.__new__(RolloutActor)
    actor._spared, actor._models, actor._pruning = False, {}, set()
    actor._depot = SimpleNamespace(keep_only=lambda _: None)  # type: ignore[assignment]
    actor._thread = lambda *_: asyncio.sleep(0)
    actor._cache = actor._store = actor._rule = None  # type: ignore[assignment]
    for _ in range(3):
        actor._tidy()
    await asyncio.gather(*actor._pruning)
    assert len(spared) == 1


async def test_a_delivery_is_one_hint() -> None:
    """Sent again it does nothing and is told so; a hint of a replica's own always counts."""
    model = FakeModel()
    client = asking(model)
    now = time.time()
    said = [await client.hint("m", each) for each in (Delivery("a", now), Delivery("a", now), Delivery("b", now), None)]
    assert (said, model.asked) == ([True, False, True, True], [("hint",)] * 3)


async def test_the_actor_takes_short_turns_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its registry's client, whose reading would keep replicas waiting for their answers."""
    done: list[str] = []

    def registry(*_: object, **__: object) -> None:
        done.append("registry")
        raise InterruptedError

    monkeypatch.setattr(rollout_actor, "hand_over_soon", lambda: done.append("hand over"))
    monkeypatch.setattr(rollout_actor, "MlflowRegistry", registry)
    with pytest.raises(InterruptedError):
        RolloutActor(Settings(home=tmp_path), "d")
    assert done == ["hand over", "registry"]
