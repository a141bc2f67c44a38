"""What the command line tells of gates, trials and probations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve.commands.evidence import progress_lines, without_time

if TYPE_CHECKING:
    from serve.client import Rollout

SEEN = {"serving_images": 900.0, "serving_p99_ms": 21.0, "candidate_images": 100.0, "candidate_errors": 3.0,
        "candidate_p99_ms": 22.5, "compared": 80.0, "found_again": 0.95}  # fmt: skip


def _state(**changes: Any) -> Rollout:
    base: dict[str, Any] = {"model": "m", "desired": "2", "serving": "1", "generation": 4, "state": "canary"}
    return base | {"step": None, "reason": None, "replicas": []} | changes  # type: ignore[return-value]


def _trial(number: int, left_s: float, seen: dict[str, float]) -> dict[str, Any]:
    return {"mode": "canary", "number": number, "of": 3, "fraction": 0.05, "left_s": left_s, "evidence": seen}


def test_nothing_under_way_says_nothing() -> None:
    """Also where the service is of a version that knows of no trials."""
    assert progress_lines(_state()) == []
    assert progress_lines(_state(trial=None, probation=None, verdicts=[])) == []


def test_each_verdict_the_trial_and_the_probation_get_a_line() -> None:
    """With their numbers, in words."""
    verdicts = [
        {"gate": "quality", "passed": passed, "waived": waived, "reason": "0.5 against 0.6", "measured": {}}
        for passed, waived in ((True, False), (True, True), (False, False))
    ]
    told = "new 100 images, 3 failed, p99 22.5 ms; old 900 images, 0 failed, p99 21.0 ms; 80 compared, 95.0 % of boxes"
    told += " found again"
    lines = progress_lines(
        _state(verdicts=verdicts, trial=_trial(2, 61.7, SEEN), probation={"left_s": 30.0, "evidence": {}})
    )
    assert lines == [
        "quality passed: 0.5 against 0.6",
        "quality waived: 0.5 against 0.6",
        "quality refused: 0.5 against 0.6",
        f"step 2 of 3, canary: 5 % of clients, 62 s left; {told}",
        "probation: 30 s left; new 0 images, 0 failed, p99 0.0 ms; old 0 images, 0 failed, p99 0.0 ms",
    ]


def test_seconds_and_counts_alone_are_no_news() -> None:
    """The next step is."""
    assert without_time(_state(trial=_trial(2, 9.0, {}))) == without_time(_state(trial=_trial(2, 8.0, SEEN)))
    assert without_time(_state(trial=_trial(2, 9.0, {}))) != without_time(_state(trial=_trial(3, 9.0, {})))
    assert without_time(_state(trial=None)) != without_time(_state(trial=_trial(1, 9.0, {})))


def _registry(**changes: Any) -> dict[str, Any]:
    return {"reachable": True, "age_s": 1.0, "failures": 0, "reason": None, "from_cache": False} | changes


def test_a_registry_gets_a_line_where_it_does_not_answer() -> None:
    """And none where it does, or was not asked yet."""
    assert progress_lines(_state(registry=_registry())) == []
    assert progress_lines(_state(registry=_registry(reachable=None, age_s=None))) == []
    gone = _registry(reachable=False, age_s=61.2, failures=12, reason="it hangs")
    assert progress_lines(_state(registry=gone)) == ["registry out of reach, last read 61 s ago: it hangs"]
    assert progress_lines(_state(registry=gone | {"age_s": None})) == ["registry out of reach, never read: it hangs"]


def test_only_a_change_of_the_registry_is_news() -> None:
    """Its age and its failures grow by themselves."""
    seen = without_time(_state(registry=_registry()))
    assert seen == without_time(_state(registry=_registry(age_s=5.0, failures=3)))
    assert seen != without_time(_state(registry=_registry(reachable=False, reason="it hangs")))
