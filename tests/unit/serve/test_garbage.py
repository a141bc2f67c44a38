"""What full collections pass over."""

from __future__ import annotations

import gc
import weakref

import pytest

from serve.garbage import spare_what_stays


class _Node:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> object:
    """Give every object back to the collector afterwards."""
    yield
    gc.unfreeze()


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
