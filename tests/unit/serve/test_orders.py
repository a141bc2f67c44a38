"""From the words of ``promote`` to its order, and what is refused on the way."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import InvalidOptionError
from models.rollout.order import PLAIN, Order
from serve.commands.orders import read_order, seconds, shares

NOTHING: dict[str, Any] = {
    "allow_contract_change": False, "force": False, "reason": None, "shadow": None, "canary": None, "step": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({}, PLAIN),
        ({"reason": "tidy"}, PLAIN),
        ({"allow_contract_change": True}, Order(allow_contract_change=True)),
        ({"force": True, "reason": "hot fix"}, Order(force="hot fix")),
        (
            {"shadow": "10m", "canary": "5%, 25%", "step": "90s"},
            Order(shadow_s=600.0, canary=(0.05, 0.25), step_s=90.0),
        ),
        ({"canary": "0.5%,12.5%"}, Order(canary=(0.005, 0.125))),
    ],
)
def test_options_become_an_order(options: dict[str, Any], order: Order) -> None:
    """What is not asked for stays at its default."""
    assert read_order(**(NOTHING | options)) == order


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"force": True}, "--reason"),
        ({"force": True, "reason": " "}, "--reason"),
        ({"reason": "x" * 501}, "500"),
        ({"step": "5m"}, "--canary"),
        ({"shadow": "10"}, "--shadow 10 is no time"),
        ({"shadow": "0s"}, "no time above zero"),
        ({"shadow": "10 minutes"}, "90s, 10m or 1h"),
        ({"shadow": "999h"}, "shadow_s"),
        ({"canary": "5"}, "--canary 5 is no list of percentages"),
        ({"canary": "5%,,25%"}, "no list"),
        ({"canary": "100%"}, "below 100%"),
        ({"canary": "0%"}, "above 0%"),
        ({"canary": "25%,5%"}, "does not rise"),
        ({"canary": "5%,5%"}, "does not rise"),
        ({"canary": "5%", "step": "x"}, "--step x is no time"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(options: dict[str, Any], words: str) -> None:
    """The sentence names the option and shows one that would do."""
    with pytest.raises(InvalidOptionError) as refused:
        read_order(**(NOTHING | options))
    assert words in str(refused.value)


@given(st.integers(1, 10_000), st.sampled_from("smh"))
def test_times_are_read_as_written(number: int, unit: str) -> None:
    """A number and its unit."""
    assert seconds("--shadow", f"{number}{unit}") == number * {"s": 1, "m": 60, "h": 3600}[unit]


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    """It is a value above zero or an error of ours."""
    for read in (lambda: seconds("--step", text), lambda: min(shares(text))):
        with contextlib.suppress(InvalidOptionError):
            assert read() > 0.0
