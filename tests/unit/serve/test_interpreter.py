"""Python in a process that answers: who waits for whom, and what full collections pass over."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest

from serve.interpreter import hand_over_soon, spare_what_stays


class _Node:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> object:
    """Give every object back to the collector afterwards, and threads their usual turns."""
    interval = sys.getswitchinterval()
    yield
    gc.unfreeze()
    sys.setswitchinterval(interval)


def test_what_lives_already_is_passed_over_and_what_comes_later_is_freed() -> None:
    """Collections get short, and a release that is loaded afterwards leaves nothing behind."""
    before = gc.get_freeze_count()
    early = _Node()
    spare_what_stays()
    assert gc.get_freeze_count() > before
    late = _Node()
    first, second = weakref.ref(early), weakref.ref(late)
    del early, late
    gc.collect()
    assert first() is not None
    assert second() is None


def test_threads_hand_the_lock_over_sooner_than_by_default() -> None:
    """Half a millisecond is what an image may wait for a thread that runs Python, at each crossing of threads."""
    hand_over_soon()
    assert sys.getswitchinterval() == pytest.approx(0.0005)
