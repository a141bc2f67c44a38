"""A blind, a worse and a slower candidate, each stopped at the gate that is there for it, on a real service."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
from asks import promote
from clients import Clients
from false_releases import slower, zero_head
from planting import MODEL, copy_of, plant
from running import audit
from verdicts import converged, nobody_suffered

from models.demo.dataset import write_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from running import Service

HELD_OUT = 40
POLLS_S = 3.0
"""Six polls of the alias, which goes on naming the version that was refused."""


def _stopped(judged: Service, version: str, step: str, pattern: str) -> re.Match[str]:
    """Promote ``version`` and demand that ``step`` refuses it for good; return what ``pattern`` finds in the reason.

    Everybody is answered by the version that served, through further polls and a new life of the rollout actor.
    """
    before = judged.rollout()
    # One client, so that one of the two replicas has time to spare: a gate that measures gives way to live images.
    with Clients(judged.url, judged.tray, count=1) as load:
        load.wait_for(before["generation"])
        promote(judged, version)
        rollout = judged.wait_until(lambda r: r["state"] == "rejected" and r["desired"] == version)
        assert rollout["step"] == step, rollout
        found = re.search(pattern, rollout["reason"])
        assert found is not None, rollout["reason"]
        _polls_change_nothing(judged, version, before)
        first = judged.actor_pid()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        judged.wait_until(lambda r: r["state"] == "rejected" and judged.actor_pid() not in {first, None})
        _polls_change_nothing(judged, version, before)
    nobody_suffered(load)
    assert {(e.version, e.generation) for e in load.exchanges} == {(before["serving"], before["generation"])}
    lines = [line for line in audit(judged) if line["result"] == "rejected" and line["to"]["version"] == version]
    assert [line["reason"].partition(":")[0] for line in lines] == [step]
    assert found[0] in lines[0]["reason"]
    return found


def _polls_change_nothing(judged: Service, version: str, before: dict[str, Any]) -> None:
    desired = judged.registry().desired(MODEL)
    assert desired is not None
    assert desired.version == version, "the alias must go on naming it, or its polls prove nothing"
    with pytest.raises(AssertionError, match="did not get there"):
        judged.wait_until(
            lambda r: (
                (r["state"], r["serving"], r["generation"]) != ("rejected", before["serving"], before["generation"])
            ),
            within_s=POLLS_S,
        )


@pytest.fixture
def second(judged: Service, tmp_path: Path) -> Path:
    """Let version 2 serve and return a folder with its files."""
    judged.settle("2")
    folder = tmp_path / "release"
    folder.mkdir()
    judged.registry().fetch(MODEL, "2", folder)
    return folder


def test_a_blind_candidate_is_stopped_by_the_golden_images(judged: Service, second: Path) -> None:
    """A zeroed head: the reason says in how many pictures it found none of how many boxes."""
    zero_head(second)
    version = plant(judged, second).version
    found = _stopped(judged, version, "golden", r"in (\d+) golden images it finds no box .* (\d+) boxes are expected")
    assert int(found[1]) >= 1
    assert int(found[2]) >= int(found[1])
    print(f"\nblind: {found[0]}")  # noqa: T201 - a figure


def test_a_worse_candidate_is_stopped_by_its_evaluation(judged: Service, tmp_path: Path) -> None:
    """The demo's version 1 over its version 2, measured by ``steelyard evaluate``: the reason holds both figures."""
    judged.settle("2")
    # Copies: whatever follows in this service is to find both demo versions without an evaluation.
    better, worse = (copy_of(judged, number, tmp_path / number, 21.0).version for number in ("2", "1"))
    data = write_dataset(tmp_path / "scenes", scenes=1, seed=0, held_out=HELD_OUT)
    map50_95 = {}
    for version in (better, worse):
        evaluated = judged.cli("evaluate", MODEL, version, "--data", str(data), "--json", timeout=240)
        assert evaluated.returncode == 0, evaluated.stderr
        map50_95[version] = json.loads(evaluated.stdout)["map50_95"]
    promote(judged, better)
    converged(judged, better)
    try:
        found = _stopped(judged, worse, "quality", r"mAP50-95 (0\.\d+) against (0\.\d+) of the serving version")
        assert float(found[1]) == pytest.approx(map50_95[worse], abs=1e-4)
        assert float(found[2]) == pytest.approx(map50_95[better], abs=1e-4)
        assert float(found[2]) - float(found[1]) > 0.05
        gates = {verdict["gate"]: verdict for verdict in judged.rollout()["verdicts"]}
        print(f"\nworse: {map50_95[worse]:.4f} against {map50_95[better]:.4f}", sorted(gates))  # noqa: T201 - a figure
    finally:
        promote(judged, "2", {"force": "the copy that was evaluated has done its work"})
        converged(judged, "2")


def test_a_slower_candidate_is_stopped_by_its_latency(judged: Service, second: Path) -> None:
    """The same answers in several times the time: the reason holds both times, and the factor that is allowed."""
    slower(second, layers=24)
    version = plant(judged, second).version
    pattern = r"([\d.]+) ms a golden image against ([\d.]+) ms of the serving version, at most 2 times"
    found = _stopped(judged, version, "latency", pattern)
    assert float(found[1]) > 2.0 * float(found[2])
    print(f"\nslower: {found[0]}")  # noqa: T201 - a figure
