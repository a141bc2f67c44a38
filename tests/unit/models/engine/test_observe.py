"""The observer that counts nothing fulfils the protocol."""

from __future__ import annotations

import inspect

from models.engine.observe import NullObserver, Observer


def test_null_observer_has_every_method() -> None:
    """No event is missing or takes other arguments."""
    events = [name for name in vars(Observer) if not name.startswith("_")]
    assert len(events) >= 8
    for name in events:
        ours, theirs = getattr(NullObserver, name), getattr(Observer, name)
        assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()
