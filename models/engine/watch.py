"""What live images say of the version that serves: counted as they are answered, at a few microseconds an image."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from models.evidence import LATENCY_BINS, SCORE_BINS, Evidence, Tally, latency_bin, merge_tallies

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.types import Detections, DetectOptions, Thresholds

SLICE_S = 60.0
HOUR_SLICES = 60
"""Slices of the last hour. Twice as many are kept of a version, for a flip closes one too early."""
MOST_VERSIONS = 3
"""Versions whose last hour is kept: as many as may be loaded."""


class TallyCounter:
    """A tally under way. Belongs to one thread."""

    __slots__ = ("_empties", "_errors", "_images", "_latency", "_looked", "_scores")

    def __init__(self) -> None:
        """Count from nothing."""
        self._images = self._errors = self._looked = self._empties = 0
        self._latency = [0] * LATENCY_BINS
        self._scores = np.zeros(SCORE_BINS, np.int64)

    def answered(self, seconds: float, found: Detections, options: DetectOptions, defaults: Thresholds) -> None:
        """Count one answer that took ``seconds``; ``defaults``: the thresholds of the version that gave it.

        What a client filtered says little of the version: with a class filter an answer may well be empty, and with
        stricter thresholds than the version's own its scores are cut off.
        """
        self._images += 1
        self._latency[latency_bin(seconds)] += 1
        if options.classes is not None:
            return
        self._looked += 1
        if not len(found):
            self._empties += 1
            return
        if (options.conf is None or options.conf <= defaults.conf) and (
            options.max_det is None or options.max_det >= defaults.max_det
        ):
            scores = found.scores if options.conf is None else found.scores[found.scores > defaults.conf]
            # A score of 1 has a bin of its own here, which is then added to the last.
            counts = np.bincount((scores * SCORE_BINS).astype(np.intp), minlength=SCORE_BINS + 1)
            self._scores += counts[:SCORE_BINS]
            self._scores[-1] += counts[SCORE_BINS]

    def failed(self) -> None:
        """Count one image that the version failed on."""
        self._errors += 1

    def tally(self) -> Tally:
        """Return what was counted so far."""
        return Tally(
            self._images,
            self._errors,
            self._looked,
            self._empties,
            tuple(self._latency),
            tuple(self._scores.tolist()),
        )


class Watch:
    """Counts the live answers of the serving version since its flip, and remembers the hour before it.

    Its methods belong to one event loop's thread.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Watch nothing until the first flip; ``clock`` gives seconds, monotonic."""
        self._clock = clock
        self._digest = ""
        self._generation = 0
        self._minute = 0
        self._slice = TallyCounter()
        self._since_flip = Tally()
        self._before = Tally()
        self._hours: dict[str, deque[tuple[int, Tally]]] = {}

    def flipped(self, digest: str, generation: int) -> None:
        """Begin anew with what serves from now on; what served until now becomes the hour before."""
        self._close_slice()
        oldest = self._this_minute() - HOUR_SLICES
        self._before = Tally()
        for minute, tally in self._hours.get(self._digest, ()):
            if minute >= oldest:
                self._before = merge_tallies(self._before, tally)
        self._digest, self._generation = digest, generation
        self._since_flip = Tally()
        # Last in, so that the version that was left longest ago is forgotten first.
        self._hours[digest] = self._hours.pop(digest) if digest in self._hours else deque(maxlen=2 * HOUR_SLICES)
        while len(self._hours) > MOST_VERSIONS:
            del self._hours[next(iter(self._hours))]

    def answered(
        self, generation: int, seconds: float, found: Detections, options: DetectOptions, defaults: Thresholds
    ) -> None:
        """Count one live answer of ``generation``; one of another than what serves belongs to no version's account."""
        if generation == self._generation and self._digest:
            self._counter().answered(seconds, found, options, defaults)

    def failed(self, digest: str) -> None:
        """Count one live image that the version of ``digest`` failed on, if it serves."""
        if digest == self._digest and digest:
            self._counter().failed()

    def evidence(self) -> Evidence:
        """Return what was seen of the serving version since its flip."""
        return Evidence(merge_tallies(self._since_flip, self._slice.tally()))

    def evidence_before(self) -> Evidence:
        """Return what the version that served before that flip had shown in the hour before it."""
        return Evidence(self._before)

    def _this_minute(self) -> int:
        return int(self._clock() // SLICE_S)

    def _counter(self) -> TallyCounter:
        if self._this_minute() != self._minute:
            self._close_slice()
        return self._slice

    def _close_slice(self) -> None:
        tally = self._slice.tally()
        if tally != Tally():
            self._since_flip = merge_tallies(self._since_flip, tally)
            self._hours[self._digest].append((self._minute, tally))
        self._slice, self._minute = TallyCounter(), self._this_minute()
