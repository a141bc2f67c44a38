"""Orders of promotions: their ranges, and that they survive being stored."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidOptionError
from models.rollout.order import MAX_REASON, MAX_STEPS, MAX_TRIAL_S, PLAIN, Order, decode, encode, from_document

ORDERS = st.builds(
    Order,
    allow_contract_change=st.booleans(),
    force=st.text(max_size=MAX_REASON).filter(lambda text: not text or bool(text.strip())),
    shadow_s=st.floats(0.0, MAX_TRIAL_S),
    shadow_fraction=st.floats(0.0, 1.0, exclude_min=True),
    canary=st.lists(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), max_size=MAX_STEPS, unique=True).map(
        lambda shares: tuple(sorted(shares))
    ),
    step_s=st.floats(0.0, MAX_TRIAL_S, exclude_min=True),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*Order.__dataclass_fields__, "other"]), inner),
)


@given(ORDERS)
def test_what_is_stored_comes_back(order: Order) -> None:
    """Exactly, floats included, on one line."""
    assert decode(encode(order)) == order
    assert "\n" not in encode(order)


@given(JSON)
def test_any_json_is_an_order_or_refused(document: object) -> None:
    """Nothing that a client or a hand-edited tag holds raises anything else, and what passes can be stored."""
    text = json.dumps(document)
    try:
        order = from_document(json.loads(text))
    except InvalidOptionError:
        assert decode(text) == PLAIN
    else:
        assert decode(text) == decode(encode(order)) == order


@given(st.none() | st.text())
def test_garbage_means_no_options(text: str | None) -> None:
    """A tag that anybody could have edited never stops a rollout; every gate stays."""
    assert isinstance(decode(text), Order)
    assert decode("[" * 100_000) == decode("{") == decode(None) == PLAIN


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"allow_contract_change": 1}, "neither true nor false"),
        ({"force": " "}, "blank"),
        ({"force": "x" * (MAX_REASON + 1)}, "characters"),
        ({"force": None}, "characters"),
        ({"shadow_s": -1.0}, "shadow_s"),
        ({"shadow_s": float("nan")}, "shadow_s"),
        ({"shadow_s": 10**400}, "shadow_s"),
        ({"shadow_s": True}, "shadow_s"),
        ({"shadow_fraction": 0.0}, "shadow_fraction"),
        ({"shadow_fraction": 1.5}, "shadow_fraction"),
        ({"step_s": 0.0}, "step_s"),
        ({"step_s": MAX_TRIAL_S + 1}, "step_s"),
        ({"canary": [0.05, 1.0]}, "below 1"),
        ({"canary": [0.0]}, "above 0"),
        ({"canary": [0.25, 0.05]}, "rise"),
        ({"canary": [0.25, 0.25]}, "rise"),
        ({"canary": "5%"}, "list"),
        ({"canary": ["5%"]}, "share"),
        ({"canary": [number / 100 for number in range(1, MAX_STEPS + 2)]}, "at most"),
        ({"speed": 1}, "no field 'speed'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    """The sentence names the field."""
    with pytest.raises(InvalidOptionError, match=words):
        from_document(fields)


def test_the_trials_take_their_time_together() -> None:
    """A shadow of ten minutes and two steps of five."""
    assert Order(shadow_s=600.0, canary=(0.05, 0.25)).length_s == 1200.0
    assert PLAIN.length_s == 0.0
