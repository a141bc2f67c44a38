"""Canaries on a real service under open load: who answers whom, and what ends a candidate that goes wrong."""

from __future__ import annotations

import math
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Self

import httpx
import pytest
from asks import promote
from false_releases import blind_to_marked, failing_on_marked, marked, slow_on_marked
from open_load import OpenLoad, failed, turned_back
from planting import MODEL, copy_of, plant
from running import audit
from verdicts import converged, serves

from models.engine.trial import place

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from open_load import Sent
    from running import Service

RATE: Final = 10.0
SHARES: Final = (0.05, 0.25)
UNLIKELY: Final = 1e-4
"""How seldom chance alone may break a bound on a share."""


class Looks:
    """Looks at the rollout again and again, and notes between which moments each trial step ran on every replica."""

    def __init__(self, service: Service) -> None:
        """Look at nothing yet."""
        self.seen: list[tuple[float, float, dict[str, Any]]] = []
        self._url = f"{service.url}/v1/models/{MODEL}/rollout"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join(timeout=40)

    def window(self, number: int) -> tuple[float, float]:
        """Return when step ``number`` ran for certain: asked after the first sign, answered before the last."""
        running = [(asked, told) for asked, told, r in self.seen if _runs(r, number)]
        assert running, f"step {number} was never seen"
        return running[0][1], running[-1][0]

    def _look(self) -> None:
        with httpx.Client(timeout=30) as http:
            while not self._stop.wait(0.1):
                asked = time.monotonic()
                try:
                    answer = http.get(self._url)
                except httpx.HTTPError:
                    continue
                if answer.status_code == httpx.codes.OK:
                    self.seen.append((asked, time.monotonic(), answer.json()))


def _runs(rollout: dict[str, Any], number: int) -> bool:
    """Return whether every replica says that it runs step ``number``."""
    trial = rollout["trial"]
    there = [each["state"] for each in rollout["replicas"]]
    return trial is not None and trial["number"] == number and there == ["trying"] * len(there)


def _regulars(digest: str) -> list[str]:
    """Return clients of every fate: three below the first share, five below the second, twelve above."""
    names = [f"regular-{number}" for number in range(2000)]
    first, second = SHARES
    fates: list[tuple[int, Callable[[float], bool]]] = [
        (3, lambda at: at < first),
        (5, lambda at: first <= at < second),
        (12, lambda at: at >= second),
    ]
    return [name for count, fits in fates for name in [n for n in names if fits(place(n, digest))][:count]]


def _bounds(trials: int, share: float) -> tuple[int, int]:
    """Return the least and the most hits among ``trials`` that chance leaves but for UNLIKELY at either end."""
    chances = [math.comb(trials, hits) * share**hits * (1 - share) ** (trials - hits) for hits in range(trials + 1)]
    least = next(hits for hits in range(trials + 1) if sum(chances[: hits + 1]) > UNLIKELY)
    most = next(hits for hits in range(trials, -1, -1) if sum(chances[hits:]) > UNLIKELY)
    return least, most


def _within(exchanges: Sequence[Sent], window: tuple[float, float]) -> list[Sent]:
    return [each for each in exchanges if window[0] <= each.sent and each.answered <= window[1]]


def test_a_canary_answers_its_share_of_clients_each_by_one_version(judged: Service, tmp_path: Path) -> None:
    """5 %, then 25 % of strangers, within binomial bounds; regulars meet one version a step and never turn back."""
    judged.settle("1")
    candidate = copy_of(judged, "2", tmp_path / "copy", 31.0)
    old = judged.rollout()["serving"]
    with (
        OpenLoad(judged.url, [judged.tray], rate=RATE, regulars=_regulars(candidate.digest)) as load,
        Looks(judged) as looks,
    ):
        load.wait_for(20)
        promote(judged, candidate.version, {"canary": list(SHARES), "step_s": 15.0})
        converged(judged, candidate.version, within_s=150.0)
        committed = time.monotonic()
        load.wait_for(20)
    assert failed(load.exchanges) == []
    assert turned_back(load.exchanges, candidate.version) == []
    assert {each.version for each in load.exchanges if each.sent > committed} == {candidate.version}
    for number, share in enumerate(SHARES, start=1):
        during = _within(load.exchanges, looks.window(number))
        strangers = [each for each in during if not each.regular]
        hits = sum(each.version == candidate.version for each in strangers)
        least, most = _bounds(len(strangers), share)
        print(f"\nstep {number}: {hits} of {len(strangers)} strangers, {least} to {most} expected")  # noqa: T201
        assert len(strangers) >= 40
        assert least <= hits <= most
        # Whoever is below the share, and nobody else, is answered by the candidate, every time and on every replica.
        assert {(e.client, e.version) for e in during if e.regular} == {
            (e.client, candidate.version if place(e.client, candidate.digest) < share else old)
            for e in during
            if e.regular
        }
        assert {e.version for e in during if e.regular} == {old, candidate.version}
    advanced = [
        line["measured"] for line in audit(judged) if (line["result"], _to(line)) == ("canary", candidate.version)
    ]
    assert len(advanced) == len(SHARES)
    assert all(figures["candidate_images"] >= 10 for figures in advanced)


def _to(line: dict[str, Any]) -> str | None:
    return line["to"] and line["to"]["version"]


BAD: Final[dict[str, tuple[Callable[[Path], None], str]]] = {
    "failing": (failing_on_marked, r"images failed"),
    "slow": (lambda folder: slow_on_marked(folder, layers=240), r"took longer than"),
    "blind": (blind_to_marked, r"answers are empty"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_canary_that_goes_wrong_ends_by_itself_and_fails_nobody(judged: Service, tmp_path: Path, kind: str) -> None:
    """It passes every gate, fails on live images, and is gone: no request has failed, and no poll brings it back."""
    judged.settle("1")
    spoil, reason = BAD[kind]
    folder = tmp_path / kind
    folder.mkdir()
    judged.registry().fetch(MODEL, "1", folder)
    spoil(folder)
    planted = plant(judged, folder, metrics={"planted": 32.0})
    before = judged.rollout()
    order = {"canary": [0.1, 0.5], "step_s": 60.0}
    regulars = [f"regular-{number}" for number in range(20)]
    with OpenLoad(judged.url, [marked(judged.tray)], rate=RATE, regulars=regulars) as load, Looks(judged) as looks:
        load.wait_for(20)
        promote(judged, planted.version, order)
        rejected = judged.wait_until(lambda r: r["state"] == "rejected" and r["desired"] == planted.version)
        ended = time.monotonic()
        load.wait_for(50)
    assert rejected["step"] == "canary", rejected
    assert re.search(reason, rejected["reason"]), rejected["reason"]
    tried = [each for each in load.exchanges if each.version == planted.version]
    print(f"\n{kind}: after {ended - looks.window(1)[0]:.1f} s, {len(tried)} answers: {rejected['reason']}")  # noqa: T201
    assert failed(load.exchanges) == []
    late = [each for each in load.exchanges if each.sent > ended + 1.0]
    assert {(each.version, each.generation) for each in late} == {(before["serving"], before["generation"])}
    lines = [line["reason"] for line in audit(judged) if line["result"] == "rejected" and _to(line) == planted.version]
    assert lines == [f"canary: {rejected['reason']}"]
    assert serves(judged.rollout() | {"state": "serving"}, "1")
