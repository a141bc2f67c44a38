"""The watch counts what the serving version answers, and keeps the hour before its flip."""

from __future__ import annotations

import numpy as np
import pytest

from models.engine.watch import MOST_VERSIONS, TallyCounter, Watch
from models.evidence import Evidence, Tally
from models.types import Detections, DetectOptions, Thresholds

PLAIN, DEFAULTS = DetectOptions(), Thresholds(conf=0.25)


def seen(*scores: float) -> Detections:
    """Return boxes with these scores."""
    count = len(scores)
    return Detections(np.zeros((count, 4), np.float32), np.array(scores, np.float32), np.zeros(count, np.int32))


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        """Return them."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock at 0."""
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> Watch:
    """Return a watch on version a, generation 1."""
    watch = Watch(clock)
    watch.flipped("a", 1)
    return watch


def answer(watch: Watch, generation: int, times: int = 1) -> None:
    """Let ``generation`` answer."""
    for _ in range(times):
        watch.answered(generation, 0.02, seen(0.9), PLAIN, DEFAULTS)


@pytest.mark.parametrize(
    ("options", "scores", "looked", "empties", "counted"),
    [
        (PLAIN, (0.9, 0.3), 1, 0, 2),
        (PLAIN, (), 1, 1, 0),
        (DetectOptions(conf=0.05), (0.9, 0.1), 1, 0, 1),
        (DetectOptions(conf=0.5), (0.9, 0.6), 1, 0, 0),
        (DetectOptions(conf=0.5), (), 1, 1, 0),
        (DetectOptions(max_det=1), (0.9,), 1, 0, 0),
        (DetectOptions(classes=frozenset({1})), (), 0, 0, 0),
        (DetectOptions(classes=frozenset({1})), (0.9,), 0, 0, 0),
    ],
)
def test_what_a_client_filtered_says_nothing_of_the_version(
    options: DetectOptions, scores: tuple, looked: int, empties: int, counted: int
) -> None:
    """Every answer has a latency; only those a filter left whole tell of empty answers and scores."""
    counter = TallyCounter()
    counter.answered(0.02, seen(*scores), options, DEFAULTS)
    tally = counter.tally()
    assert (tally.images, sum(tally.latency)) == (1, 1)
    assert (tally.looked, tally.empties, sum(tally.scores)) == (looked, empties, counted)


def test_scores_of_all_sizes_have_a_bin() -> None:
    """The bins are those of the evidence, and a full score falls into the last."""
    counter = TallyCounter()
    counter.answered(0.02, seen(1.0, 0.99, 0.26, 0.0), DetectOptions(conf=0.0), Thresholds(conf=0.0))
    scores = counter.tally().scores
    assert (scores[19], scores[5], sum(scores)) == (2, 1, 3)


def test_a_flip_begins_anew_and_keeps_the_hour(watch: Watch) -> None:
    """What was counted until the flip is the hour before, and counts for nobody else."""
    answer(watch, 1, 3)
    watch.failed("a")
    assert (watch.evidence().serving.images, watch.evidence_before()) == (3, Evidence())
    watch.flipped("b", 2)
    answer(watch, 2, 2)
    assert (watch.evidence().serving.images, watch.evidence().serving.errors) == (2, 0)
    assert (watch.evidence_before().serving.images, watch.evidence_before().serving.errors) == (3, 1)


def test_only_what_serves_is_counted(watch: Watch) -> None:
    """Late answers of the old generation, a canary's, and failures of others change nothing."""
    watch.flipped("b", 2)
    answer(watch, 1)
    answer(watch, 3)
    watch.failed("a")
    watch.failed("")
    assert watch.evidence() == Evidence()


def test_before_the_first_flip_nothing_is_counted(clock: Clock) -> None:
    """An engine without a release has no evidence."""
    watch = Watch(clock)
    answer(watch, 0)
    watch.failed("")
    assert watch.evidence() == watch.evidence_before() == Evidence()


def test_the_hour_is_an_hour(watch: Watch, clock: Clock) -> None:
    """Of a version that served for days only the last hour is held against the next."""
    for minute in range(180):
        clock.now = 60.0 * minute
        answer(watch, 1)
    assert watch.evidence().serving.images == 180
    watch.flipped("b", 2)
    assert 60 <= watch.evidence_before().serving.images <= 61


def test_a_version_that_comes_back_has_its_hour_still(watch: Watch, clock: Clock) -> None:
    """After a short failure the old version's former answers count as its last hour, too."""
    answer(watch, 1, 50)
    clock.now = 10.0
    watch.flipped("b", 2)
    clock.now = 20.0
    watch.flipped("a", 3)
    answer(watch, 3, 2)
    watch.flipped("c", 4)
    assert watch.evidence_before().serving.images == 52


def test_it_does_not_grow(watch: Watch) -> None:
    """However many versions come, only the last ones' hours are kept."""
    for generation in range(2, 50):
        watch.flipped(f"v{generation}", generation)
        answer(watch, generation)
    assert len(watch._hours) == MOST_VERSIONS
    assert watch.evidence_before().serving.images == 1
    assert watch.evidence().serving != Tally()
