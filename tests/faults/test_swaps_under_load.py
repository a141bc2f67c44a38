"""The measurement of swaps itself: ten swaps of a real service on the fake backend, and nobody notices any."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "loadtest"))

import swap
from swap_figures import summarize


def test_ten_swaps_of_two_replicas_under_load() -> None:
    """None of the requests fails or gets a wrong or an older answer; each replica holds and flips once a swap.

    Times are not judged: a machine that runs a whole suite keeps none.
    """
    result = swap.run(swap.parse(["--swaps", "10", "--rollback-every", "5", "--rate", "25", "--warmup", "1"]))
    found = summarize(result["pieces"])
    assert (found["swaps"], found["rollbacks"]) == (10, 2)
    assert found["sent"] > 300
    assert (found["failed"], found["wrong"]) == (0, 0), result["pieces"][0]["wrong_examples"]
    assert (found["regressions"], found["regressions_all"]) == (0, 0)
    (piece,) = result["pieces"]
    assert piece["replicas_seen"] == 2
    assert piece["generations"] >= 10
    assert all(len(one["holds_ms"]) >= 2 for one in piece["swaps"])
    generations = [one["generation"] for one in piece["swaps"]]
    assert generations == sorted(set(generations))
    assert all(len(one["rss"]) == 2 for one in piece["swaps"])
