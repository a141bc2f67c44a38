"""Answers under swaps are held against known outputs, and time against itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from swap_answers import Known, Told, iou, judge, mixed, regressions, same, verdicts
from swap_clients import Seen

OLD, NEW = "a" * 64, "b" * 64


def box(x: float, confidence: float = 0.9, kind: int = 0) -> dict[str, Any]:
    """Return a box of 100 x 100 pixels at ``x``."""
    corners = {"x1": x, "y1": 0.0, "x2": x + 100.0, "y2": 100.0}
    return {"name": "tin", "class": kind, "confidence": confidence, "box": corners}


KNOWN = {"1": Known(OLD, ([box(0.0)],)), "2": Known(NEW, ([box(500.0)],))}


def seen(
    version: str = "1",
    digest: str = OLD,
    x: float = 0.0,
    *,
    generation: int = 1,
    sent: float = 0.0,
    done: float = 1.0,
    client: int = 0,
    **changes: Any,
) -> Seen:
    """Return an exchange, by default a right one of version 1."""
    body = {
        "images": [{"results": [box(x)]}],
        "metadata": {"version": version, "digest": digest, "generation": generation},
    }
    whole = {"version": version, "digest": digest, "status": 200, "code": "", "body": json.dumps(body).encode()}
    return Seen(client=client, picture=0, due=sent, sent=sent, done=done, **whole | changes)


@pytest.mark.parametrize(
    ("exchange", "wrong"),
    [
        (seen(), None),
        (seen("2", NEW, 500.0), None),
        (seen("3"), "never promoted"),
        (seen("1", NEW), "digest"),
        (seen()._replace(version="2"), "digest"),
        (seen("1", OLD, 500.0), "but version 2's"),
        (seen("1", OLD, 250.0), "nor any other"),
        (seen(body=b"{"), "no answer"),
        (seen(body=b'{"images": [], "metadata": {}}'), "no answer"),
    ],
)
def test_an_answer_must_be_the_named_versions_own(exchange: Seen, wrong: str | None) -> None:
    """Header, body, registry and known output have to agree."""
    found = judge(exchange, KNOWN, exact=True).wrong
    assert found is None if wrong is None else wrong in str(found)


def test_a_real_network_may_drift_and_not_change() -> None:
    """Confidence and place may move a little, faint boxes may come and go, a sure one may not."""
    expected = [box(0.0, 0.9), box(300.0, 0.3)]
    assert same(expected, [box(1.0, 0.85)], exact=False)
    assert same(expected, [box(1.0, 0.85), box(600.0, 0.4)], exact=False)
    assert not same(expected, [box(1.0, 0.85)], exact=True)
    assert not same(expected, [box(1.0, 0.85), box(600.0, 0.8)], exact=False)
    assert not same(expected, [box(20.0, 0.9)], exact=False)
    assert not same(expected, [box(0.0, 0.9, kind=1)], exact=False)
    assert not same(expected, [], exact=False)
    assert not same([box(0.0), box(0.0)], [box(0.0)], exact=False)


def test_overlap() -> None:
    """Of the same box 1, of a half-shifted one a third, of strangers and of points nothing."""
    one = box(0.0)["box"]
    assert iou(one, one) == 1.0
    assert iou(one, box(50.0)["box"]) == pytest.approx(1 / 3)
    assert iou(one, box(200.0)["box"]) == 0.0
    point = {"x1": 1.0, "y1": 1.0, "x2": 1.0, "y2": 1.0}
    assert iou(point, point) == 0.0


def test_a_regression_needs_a_newer_answer_before_the_request() -> None:
    """An answer that was under way already may still be old."""
    assert regressions([(0.0, 1.0, 2), (0.5, 1.5, 1)]) == 0
    assert regressions([(0.0, 1.0, 2), (1.1, 1.5, 1)]) == 1
    assert regressions([(0.0, 1.0, 2), (1.0, 1.5, 1)]) == 0
    assert regressions([(0.0, 1.0, 2), (1.1, 1.2, 1), (1.3, 1.4, 1), (1.5, 1.6, 2)]) == 2
    assert regressions([]) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20), st.integers(0, 3)), max_size=30))
def test_regressions_are_what_pairs_say(raw: list[tuple[int, int, int]]) -> None:
    """The sweep counts the same as comparing every request with every answer."""
    asked = [(float(sent), float(sent + took), generation) for sent, took, generation in raw]
    slow = sum(any(done < sent and newer > own for _, done, newer in asked) for sent, _, own in asked)
    assert regressions(asked) == slow


def test_one_generation_is_one_version() -> None:
    """Two versions under one generation are a split fleet."""
    assert mixed([Told(1, "1", None), Told(2, "2", None), Told(2, "2", None)]) == []
    assert mixed([Told(1, "1", None), Told(1, "2", None)]) == [1]


def test_a_run_is_counted() -> None:
    """Failures by kind, wrong answers with examples, regressions of one client apart from those over all."""
    run = [
        seen("2", NEW, 500.0, generation=2, sent=0.0, done=1.0, client=0),
        seen(generation=1, sent=2.0, done=3.0, client=1),
        seen(x=250.0, generation=1, sent=4.0, done=5.0, client=0),
        seen(status=429, code="overloaded", body=b""),
        seen(status=0, code="timeout", body=b""),
    ]
    found = verdicts(run, KNOWN, exact=True)
    assert (found["sent"], found["answered"], found["generations"]) == (5, 3, 2)
    assert found["failures"] == {"429 overloaded": 1, "0 timeout": 1}
    assert found["wrong"] == 1
    assert list(found["wrong_examples"].values()) == [1]
    assert (found["regressions"], found["regressions_all"]) == (1, 2)


def test_a_split_fleet_is_wrong() -> None:
    """Each answer for itself may be right."""
    run = [seen(generation=7), seen("2", NEW, 500.0, generation=7)]
    assert verdicts(run, KNOWN, exact=True)["wrong"] == 1
