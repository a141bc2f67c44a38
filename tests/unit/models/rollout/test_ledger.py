"""Ledger programs: claims, the fence, recovery, sweeping; and the fake ledger."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import LedgerError
from models.rollout import ledger
from models.rollout.ledger import FakeLedger
from models.rollout.messages import Attempt, Target

ONE = Target("1", "d1", "p1")


def _run(program: ledger.Program[Any], store: FakeLedger) -> Any:
    return asyncio.run(ledger.run(program, store))


def _put(store: FakeLedger, key: str, value: str) -> str:
    return asyncio.run(store.put_if_absent(key, value))


def test_incarnations_rise_and_a_repeated_claim_keeps_its_number() -> None:
    """Each life gets the next number; a claim whose reply was lost can be made again."""
    store = FakeLedger()
    assert _run(ledger.claim_incarnation("a"), store) == 1
    assert _run(ledger.claim_incarnation("b"), store) == 2
    store.lose_replies = 1
    with pytest.raises(LedgerError):
        _run(ledger.claim_incarnation("c"), store)
    assert _run(ledger.claim_incarnation("c"), store) == 4


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_claim_is_won_once_and_its_repetition_is_won_too(lost: int) -> None:
    """The first writer owns the generation, however many of its replies are lost."""
    store, attempt = FakeLedger(), Attempt(3, 1, ONE)
    store.lose_replies = lost
    for _ in range(lost):
        with pytest.raises(LedgerError):
            _run(ledger.claim("m", attempt), store)
    assert _run(ledger.claim("m", attempt), store) == "won"
    assert _run(ledger.claim("m", Attempt(3, 1, Target("2", "d2", "p2"))), store) == "lost"
    assert store.data["m/decision/3"] == "ABORT"


def test_a_deposed_life_can_neither_claim_nor_admit() -> None:
    """Once a later incarnation exists, the earlier one learns it from its next write."""
    store = FakeLedger()
    _put(store, "incarnation/1", "a")
    _put(store, "incarnation/2", "b")
    assert _run(ledger.claim("m", Attempt(1, 1, ONE)), store) == "deposed"
    assert _run(ledger.record_member("m", "r1", 1), store) is False
    assert _run(ledger.record_member("m", "r1", 2), store) is True


def test_recovery_decides_what_was_undecided_and_finds_what_was_committed() -> None:
    """Of three claims, the committed one stands, the undecided ones become ABORT, members are listed."""
    store = FakeLedger()
    first, second = Attempt(1, 1, ONE), Attempt(2, 1, Target("2", "d2", "p2"), ONE)
    for attempt in (first, second, Attempt(3, 1, ONE)):
        _put(store, f"m/claim/{attempt.generation}", ledger.encode(attempt))
    _put(store, "m/decision/2", "COMMIT")
    _put(store, "m/member/SERVE::a#b", "1")
    _put(store, "other/member/x", "1")
    found = _run(ledger.recover("m"), store)
    assert (found.committed, found.top, found.aborted) == (second, 3, {3})
    assert found.members == {"SERVE::a#b"}
    assert store.data["m/decision/1"] == store.data["m/decision/3"] == "ABORT"


def test_an_empty_ledger_recovers_to_nothing() -> None:
    """A new cluster has no commit, no claim and no member."""
    found = _run(ledger.recover("m"), FakeLedger())
    assert found == ledger.Recovery(None, 0, frozenset(), frozenset())


def test_sweeping_keeps_what_somebody_may_still_ask_for() -> None:
    """Claims and decisions below the commit go; the committed one, later ones and members stay."""
    store = FakeLedger()
    for generation in (1, 2, 3, 10):
        _put(store, f"m/claim/{generation}", "x")
        _put(store, f"m/decision/{generation}", "ABORT")
    _put(store, "m/member/r", "1")
    _run(ledger.sweep("m", 3), store)
    kept = {"m/claim/3", "m/claim/10", "m/decision/3", "m/decision/10", "m/member/r"}
    assert set(store.data) == kept
    _run(ledger.forget_member("m", "r"), store)
    assert "m/member/r" not in store.data


_TARGETS = st.builds(Target, st.text(), st.text(), st.text())


@given(st.builds(Attempt, st.integers(1, 10**9), st.integers(1, 10**6), _TARGETS, st.none() | _TARGETS))
def test_an_attempt_survives_its_record(attempt: Attempt) -> None:
    """What is written is what is read."""
    assert ledger.decode(ledger.encode(attempt)) == attempt


@pytest.mark.parametrize("text", ["", "{}", "null", '{"generation": "x"}', '{"previous": null}'])
def test_an_unreadable_record_is_an_error_not_a_guess(text: str) -> None:
    """A record of another format stops the recovery instead of being taken for an empty ledger."""
    with pytest.raises(LedgerError, match="cannot read"):
        ledger.decode(text)


def test_an_unreachable_fake_ledger_fails_every_call() -> None:
    """All four operations raise LedgerError, and none has an effect."""
    store = FakeLedger()
    store.reachable = False
    calls = (store.put_if_absent("a", "b"), store.get("a"), store.keys(""), store.delete("a"))
    for call in calls:
        with pytest.raises(LedgerError, match="cannot be reached"):
            asyncio.run(call)
    assert store.data == {}
