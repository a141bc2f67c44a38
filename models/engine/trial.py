"""A trial in one engine: which clients a candidate answers, which images it runs on unseen, and what came of it.

Canary: a client is known by its ``X-Client-Id``; its hash, salted by the candidate's digest, is a place in [0, 1).
Those below the canary's share are answered by the candidate, on every replica alike and for as long as the trial lasts,
and a larger share only adds clients. So each client meets the two versions in one order, as I7 promises. A client that
sends no id cannot be followed; it stays with the serving version until the commit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from models.engine.shadow import Shadow, ShadowImage
from models.engine.watch import TallyCounter
from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.evidence import Evidence, Pairs, merge_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from models.engine.batch import Lane
    from models.engine.detect import Encoded, Job, Seen
    from models.engine.shadow import ShadowOutcome
    from models.engine.slots import Lease, Slots
    from models.types import Answer, DetectOptions, Release


def place(key: str, salt: str) -> float:
    """Return where ``key`` falls in [0, 1): uniform over keys, independent for different salts, the same everywhere."""
    digest = hashlib.blake2b(key.encode(), key=salt.encode()[:64], digest_size=7).digest()
    # 53 bits are what a float holds exactly; of more, the largest would round up to 1.
    return (int.from_bytes(digest, "big") >> 3) / 2.0**53


class _Step:
    """One step under way: who the candidate is, its shares, and the counts."""

    def __init__(self, release: Release, generation: int, canary: float, shadow: float) -> None:
        self.release, self.generation = release, generation
        self.canary, self.shadow = canary, shadow
        self.serving, self.candidate = TallyCounter(), TallyCounter()
        self.pairs = Pairs()
        self.offered = 0

    @property
    def digest(self) -> str:
        return self.release.digest


class Trial:
    """The trial step of one engine, if one is under way. Its methods belong to one event loop's thread."""

    def __init__(
        self,
        slots: Slots,
        run: Callable[[Lease, Sequence[Job | Encoded], Lane], Sequence[Seen | Exception | None]],
        spare_lane: Callable[[Lease], Lane | None],
        lane_free: Callable[[], None],
    ) -> None:
        """Try nothing yet; for the arguments see ``Shadow``."""
        self._slots = slots
        self._step: _Step | None = None
        self._shadow = Shadow(run, spare_lane, lane_free)

    def begin(self, digest: str, generation: int, canary: float, shadow: float) -> None:
        """Begin a step, or the next one of the same candidate, with new evidence.

        Args:
            digest: of a resident release other than the serving one.
            generation: of its attempt; the candidate's answers carry it.
            canary: share of clients that it answers, 0 to 1.
            shadow: share of the serving version's images that it runs on unseen, 0 to 1.

        Raises:
            ReleaseFaultError: it is not resident, or serves already.
            ReleaseRejectedError: its class ids mean other things than the serving version's.

        """
        step = "canary" if canary else "shadow"
        resident, active = self._slots.find(digest), self._slots.active
        if resident is None or active is None or resident is active:
            msg = "the version to try is not loaded in this replica beside another; prepare it first"
            raise ReleaseFaultError(msg, step=step)
        release = resident.renamed or resident.release
        names = active.release.contract.names
        if release.contract.names[: len(names)] != names:
            msg = (
                "the version names its classes otherwise than the serving one, so they cannot be compared; promote it "
            )
            raise ReleaseRejectedError(msg + "without shadow and canary", step=step)
        self._shadow.clear()
        self._step = _Step(release, generation, canary, shadow)

    def end(self, digest: str | None = None) -> None:
        """End the trial, that of ``digest`` only where one is given: every client is answered by what serves."""
        if self._step is not None and digest in {None, self._step.digest}:
            self._step = None
            self._shadow.clear()

    def route(self, client_id: str | None) -> Release | None:
        """Return the candidate where it answers that client, else None."""
        step = self._step
        if step is None or client_id is None or place(client_id, step.digest) >= step.canary:
            return None
        return step.release if self._slots.find(step.digest) is not None else None

    def lease(self, digest: str) -> Lease | None:
        """Pin the candidate of ``digest`` for images routed to it; the serving release where its trial has ended."""
        step = self._step
        lease = None
        if step is not None and step.digest == digest:
            lease = self._slots.lease_resident(digest, step.generation)
        return lease or self._slots.lease()

    def answered(self, data: bytes, options: DetectOptions, answer: Answer, seconds: float) -> None:
        """Count a live answer that took ``seconds``; let the candidate look at its image too if it is chosen."""
        step = self._step
        if step is None:
            return
        if answer.release.digest == step.digest:
            step.candidate.answered(seconds, answer.detections, options, step.release.thresholds)
            return
        active = self._slots.active
        if active is None or answer.release.digest != active.release.digest:
            return
        step.serving.answered(seconds, answer.detections, options, active.release.thresholds)
        step.offered += 1
        if place(str(step.offered), step.digest) < step.shadow:
            self._shadow.offer(
                ShadowImage(
                    data,
                    options,
                    answer.detections,
                    lambda: self._lease_shadow(step),
                    lambda outcome: self._compared(step, options, outcome),
                )
            )

    def failed(self, digest: str) -> None:
        """Count a live image that the version of ``digest`` failed on."""
        step, active = self._step, self._slots.active
        if step is not None and digest == step.digest:
            step.candidate.failed()
        elif step is not None and active is not None and digest == active.release.digest:
            step.serving.failed()

    def pump(self) -> None:
        """Use the moment if a worker is idle."""
        self._shadow.pump()

    def evidence(self) -> Evidence:
        """Return what this step has shown so far, nothing where none is under way."""
        step = self._step
        if step is None:
            return Evidence()
        return Evidence(step.serving.tally(), step.candidate.tally(), step.pairs)

    async def close(self, grace_s: float) -> None:
        """End the trial and wait at most ``grace_s`` seconds for a shadow under way. Idempotent."""
        self.end()
        await self._shadow.close(grace_s)

    def _lease_shadow(self, step: _Step) -> Lease | None:
        return self._slots.lease_resident(step.digest, step.generation) if step is self._step else None

    def _compared(self, step: _Step, options: DetectOptions, outcome: ShadowOutcome) -> None:
        if outcome is None:
            pairs = Pairs(dropped=1)
        elif isinstance(outcome, Exception):
            step.candidate.failed()
            pairs = Pairs(failed=1)
        else:
            seen, pairs = outcome
            step.candidate.answered(seen.infer_s + seen.post_s, seen.detections, options, step.release.thresholds)
        step.pairs = merge_pairs(step.pairs, pairs)
