"""How fast an engine is, told from its batches."""

import itertools

import pytest

from models.engine.throughput import Throughput


def measured(
    batches: int, images: int, seconds: float, *, alone: bool = False, beside: int = 0, workers: int = 1
) -> Throughput:
    """Return what so many equal batches, one after another, tell."""
    now = itertools.count(0.0, seconds)
    found = Throughput(lambda: next(now))
    for _ in range(batches):
        found.finished(images, seconds, alone=alone, beside=beside, workers=workers)
    return found


def test_little_is_no_measure() -> None:
    """The first images of a release are slower than all others."""
    assert measured(2, 1, 0.05).images_a_second() == 0.0
    assert measured(0, 1, 0.05).batch_s == 0.0


@pytest.mark.parametrize(
    ("images", "seconds", "beside", "workers", "rate"),
    [
        (1, 0.05, 0, 1, 20.0),
        (1, 0.04, 0, 2, 50.0),  # one of two workers was idle
        (1, 0.06, 2, 2, 50.0),  # three lanes on two workers: each waited for its worker
        (8, 0.1, 0, 1, 80.0),
    ],
)
def test_the_rate_is_that_of_all_workers(images: int, seconds: float, beside: int, workers: int, rate: float) -> None:
    """Whether they were busy while it was measured or not."""
    assert measured(5, images, seconds, beside=beside, workers=workers).images_a_second() == pytest.approx(rate)


def test_the_fastest_size_counts() -> None:
    """At a low load a batch is one image; what counts is what the engine can do when many come."""
    found = measured(20, 1, 0.02)
    found.finished(8, 0.04, alone=False, beside=0, workers=1)
    assert found.images_a_second() == pytest.approx(200.0)


def test_an_image_with_all_threads_tells_only_where_nothing_else_does() -> None:
    """It is faster than one of two beside each other, and slower than both together."""
    found = measured(5, 1, 0.025, alone=True, workers=2)
    assert found.images_a_second() == pytest.approx(40.0)
    found.finished(1, 0.033, alone=False, beside=1, workers=2)
    assert found.images_a_second() == pytest.approx(2 / 0.033)


def test_it_follows_a_change_of_pace_that_stays() -> None:
    """Slow for two seconds, while others start on its cores, it is hardly thought slower; slow for minutes, it is."""
    now = 0.0
    found = Throughput(lambda: now)

    def run(seconds: float, until: float) -> None:
        nonlocal now
        while now < until:
            now += seconds
            found.finished(1, seconds, alone=False, beside=0, workers=1)

    run(0.05, 60.0)
    run(0.1, 62.0)
    assert found.images_a_second() > 18.0
    run(0.1, 240.0)
    assert found.images_a_second() == pytest.approx(10.0, rel=0.01)
    assert found.batch_s == pytest.approx(0.1, rel=0.01)


def test_one_image_after_a_long_silence_does_not_tell_all() -> None:
    """The first after an hour may be slow for any reason."""
    now = 0.0
    found = Throughput(lambda: now)
    for _ in range(50):
        now += 0.05
        found.finished(1, 0.05, alone=False, beside=0, workers=1)
    now += 3600.0
    found.finished(1, 1.0, alone=False, beside=0, workers=1)
    assert found.images_a_second() > 6.0
