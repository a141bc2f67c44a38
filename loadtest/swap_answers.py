"""Judges answers: whether the release that an answer names gave it, and whether time ran backwards for anybody."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from connection import OK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swap_clients import Seen

SURE = 0.5
"""Confidence from which a box of a real network must come again whatever company its image had in the batch."""
PRESENT = 0.25
LEAST_IOU = 0.9
MOST_DRIFT = 0.1
"""What a confidence may move by between the forms of one network in bf16."""
EXAMPLES = 5

Boxes = list[dict[str, Any]]
"""``results`` of one image in a native answer."""


@dataclass(frozen=True, slots=True)
class Known:
    """What one version answers. digest: 64 hex digits. results: one a picture, taken while nothing else was asked."""

    digest: str
    results: tuple[Boxes, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer 200 says of its origin. generation: -1 where it says nothing sensible. wrong: what is wrong."""

    generation: int
    version: str
    wrong: str | None


def judge(seen: Seen, known: Mapping[str, Known], *, exact: bool) -> Told:
    """Hold one answer 200 against the registered digest and the known output of the version that it names."""
    try:
        document = json.loads(seen.body)
        origin, results = document["metadata"], document["images"][0]["results"]
        version, digest, generation = str(origin["version"]), str(origin["digest"]), int(origin["generation"])
    except (ValueError, KeyError, IndexError, TypeError):
        return Told(-1, "", "the body is no answer")
    expected = known.get(version)
    if expected is None:
        wrong = f"version {version} was never promoted"
    elif not digest == seen.digest == expected.digest or seen.version != version:
        wrong = f"header, body and registry disagree on version {version}'s digest"
    elif not same(expected.results[seen.picture], results, exact=exact):
        others = [
            other
            for other, one in known.items()
            if other != version and same(one.results[seen.picture], results, exact=exact)
        ]
        wrong = f"an answer under version {version} is not its own, " + (
            f"but version {others[0]}'s" if others else "nor any other version's"
        )
    else:
        wrong = None
    return Told(generation, version, wrong)


def mixed(told: Iterable[Told]) -> list[int]:
    """Return the generations under which more than one version answered."""
    versions: dict[int, set[str]] = {}
    for each in told:
        versions.setdefault(each.generation, set()).add(each.version)
    return sorted(generation for generation, names in versions.items() if len(names) > 1)


def same(expected: Boxes, found: Boxes, *, exact: bool) -> bool:
    """Return whether two results are of one network: equal, or for a real runtime alike in every sure box."""
    if exact:
        return expected == found
    return _covers(expected, found) and _covers(found, expected)


def regressions(asked: Sequence[tuple[float, float, int]]) -> int:
    """Return how many requests were answered by a lower generation than an answer that came before they were sent.

    asked: (sent, done, generation) of answers 200, in any order.
    """
    answers = sorted((done, generation) for _, done, generation in asked)
    newest, position, count = -1, 0, 0
    for sent, _, generation in sorted(asked):
        while position < len(answers) and answers[position][0] < sent:
            newest = max(newest, answers[position][1])
            position += 1
        count += generation < newest
    return count


def verdicts(exchanges: Sequence[Seen], known: Mapping[str, Known], *, exact: bool) -> dict[str, Any]:
    """Return counts over a run: answers, failures by status and code, wrong answers with examples, regressions.

    ``regressions`` counts those that one client could notice by itself, ``regressions_all`` those that clients who
    compare notes could.
    """
    good = [seen for seen in exchanges if seen.status == OK]
    told = [judge(seen, known, exact=exact) for seen in good]
    wrong = Counter(each.wrong for each in told if each.wrong is not None)
    for generation in mixed(told):
        wrong[f"several versions answered under generation {generation}"] += 1
    moments = [(seen.sent, seen.done, each.generation) for seen, each in zip(good, told, strict=True)]
    clients: dict[int, list[tuple[float, float, int]]] = {}
    for seen, moment in zip(good, moments, strict=True):
        clients.setdefault(seen.client, []).append(moment)
    bad = Counter(f"{seen.status} {seen.code}".strip() for seen in exchanges if seen.status != OK)
    return {
        "sent": len(exchanges),
        "answered": len(good),
        "failures": dict(bad),
        "wrong": sum(wrong.values()),
        "wrong_examples": dict(wrong.most_common(EXAMPLES)),
        "regressions": sum(regressions(own) for own in clients.values()),
        "regressions_all": regressions(moments),
        "generations": len({each.generation for each in told}),
    }


def _covers(first: Boxes, second: Boxes) -> bool:
    """Return whether each sure box of ``first`` has one of its own in ``second``."""
    left = [box for box in second if box["confidence"] >= PRESENT]
    for box in first:
        if box["confidence"] < SURE:
            continue
        twin = next(
            (
                each
                for each in left
                if each["class"] == box["class"]
                and abs(each["confidence"] - box["confidence"]) <= MOST_DRIFT
                and iou(each["box"], box["box"]) >= LEAST_IOU
            ),
            None,
        )
        if twin is None:
            return False
        left.remove(twin)
    return True


def iou(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return the intersection over union, 0 to 1, of two boxes with the keys x1, y1, x2, y2."""
    width = min(first["x2"], second["x2"]) - max(first["x1"], second["x1"])
    height = min(first["y2"], second["y2"]) - max(first["y1"], second["y1"])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box["x2"] - box["x1"]) * (box["y2"] - box["y1"]) for box in (first, second))
    return shared / (areas - shared) if areas > shared else 0.0
