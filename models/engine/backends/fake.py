"""A backend without a network: boxes that follow from an image's pixels and the release's digest, for tests.

Answers are exact functions of (tensor, digest), so a test can tell which release answered and whether an image's answer
depends on its company. Its switches may be thrown while it serves.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from models.engine.backends.backend import Plan
from models.engine.decode import DecodeLimits, decode
from models.engine.preprocess import letterbox
from models.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from models.engine.backends.backend import Beside, Shape
    from models.errors import ReleaseError
    from models.types import Release

BOXES = 4
"""Boxes in each image, all with a score of 0.5 to 1."""

_Seen = tuple["NDArray[np.float32]", "NDArray[np.float32]", "NDArray[np.int32]"]
"""Boxes (n, 4) x1 y1 x2 y2 in pixels of the tensor, scores (n,), class ids (n,) of one image."""


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One call of ``infer``: digest of the release, images, (height, width) of the tensor, lane, alone."""

    digest: str
    size: int
    shape: Shape
    lane: int
    alone: bool = False


class FakeBackend:
    """Fulfils Backend. Safe to use from several threads."""

    name = "fake"

    def __init__(
        self,
        service_time_s: float = 0.0,
        *,
        blind: bool = False,
        finite: bool = True,
        recalls: bool = False,
        remembered: int = 10_000,
        plan: Plan | None = None,
        load_time_s: float = 0.0,
        load_error: ReleaseError | None = None,
        infer_error: BaseException | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make a backend.

        Args:
            service_time_s: seconds that each call of ``infer`` takes, >= 0.
            blind: sees nothing: every score is 0.
            finite: False makes every output NaN.
            recalls: sees in its release's golden images what they expect, so that it passes the sight test.
            remembered: calls and sessions that are kept for whoever looks; a session keeps its release in memory.
            plan: how its sessions are driven; None means one lane of at most 8 images.
            load_time_s: seconds that ``load`` takes, >= 0.
            load_error: raised by ``load``.
            infer_error: raised by ``infer``.
            sleep: spends the seconds; tests pass their own.

        """
        self.service_time_s = service_time_s
        self.blind = blind
        self.finite = finite
        self.recalls = recalls
        self.load_time_s = load_time_s
        self.load_error = load_error
        self.infer_error = infer_error
        self.sleep = sleep
        self.calls: deque[FakeCall] = deque(maxlen=10 * remembered)
        self.sessions: deque[FakeSession] = deque(maxlen=remembered)
        self.beside: Beside | None = None
        self.found = False
        """Whether its sessions say that they found something on disk."""
        self._plan = plan or Plan(lanes=1, max_batch=8)

    def plans(self) -> tuple[Plan, ...]:
        """Return the one plan."""
        return (self._plan,)

    def load(self, release: Release, plan: Plan | None = None, beside: Beside | None = None) -> FakeSession:
        """Return a session; raises ``load_error``. Remembers ``beside``."""
        self.beside = beside
        self.sleep(self.load_time_s)
        if self.load_error is not None:
            raise self.load_error
        session = FakeSession(self, release, plan or self._plan)
        self.sessions.append(session)
        return session


class FakeSession:
    """Fulfils Session; checks that its caller keeps the contract."""

    def __init__(self, backend: FakeBackend, release: Release, plan: Plan) -> None:
        """Serve ``release``."""
        self.release = release
        self.plan = plan
        self.closed = False
        self.warmed: set[Shape] = set()
        self.warmed_alone: set[Shape] = set()
        self._backend = backend
        self._lanes = [threading.Lock() for _ in range(plan.lanes)]
        self._recalled = _golden_boxes(release) if backend.recalls else {}

    def infer(self, batch: NDArray[np.uint8], lane: int, *, alone: bool = False) -> NDArray[np.float32]:
        """Return BOXES boxes an image. Raises BackendError when closed, or when the lane is busy."""
        if self.closed:
            msg = "a closed session was used. This is a bug."
            raise BackendError(msg)
        if not self._lanes[lane].acquire(blocking=False):
            msg = f"two calls on lane {lane} at once. This is a bug."
            raise BackendError(msg)
        try:
            shape = (batch.shape[1], batch.shape[2])
            self._backend.calls.append(FakeCall(self.release.digest, len(batch), shape, lane, alone))
            self._backend.sleep(self._backend.service_time_s)
            if self._backend.infer_error is not None:
                raise self._backend.infer_error
            return np.stack([self._see(image) for image in batch])
        finally:
            self._lanes[lane].release()

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Remember the shape, which one copy serves on every lane."""
        if copy:
            return False
        (self.warmed_alone if alone else self.warmed).add(shape)
        return True

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Drop the shape."""
        if not copy:
            (self.warmed_alone if alone else self.warmed).discard(shape)

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:  # noqa: ARG002 - there is one
        """Return the bytes of one tensor, a lane or alone."""
        return shape[0] * shape[1] * 3 * (1 if alone else self.plan.lanes)

    def distrust(self) -> bool:
        """Return ``found`` of the backend, and have the next load find nothing."""
        found, self._backend.found = self._backend.found, False
        return found

    def close(self) -> None:
        """Refuse all further calls."""
        self.closed = True

    def _see(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        height, width = image.shape[:2]
        contract = self.release.contract
        key = hashlib.blake2b(image.tobytes(), key=self.release.digest.encode()[:64], digest_size=32).digest()
        random = np.random.default_rng(int.from_bytes(key, "little"))
        start = random.uniform(0.0, 0.5, (BOXES, 2))
        end = start + random.uniform(0.1, 0.5, (BOXES, 2))
        boxes = (np.concatenate((start, end), axis=1) * (width, height, width, height)).astype(np.float32)
        scores = np.sort(random.uniform(0.5, 1.0, BOXES).astype(np.float32))[::-1]
        ids = random.integers(0, len(contract.names), BOXES).astype(np.int32)
        boxes, scores, ids = self._recalled.get(image.tobytes(), (boxes, scores, ids))
        if self._backend.blind:
            scores = np.zeros_like(scores)
        output = np.concatenate((boxes, scores[:, None], ids[:, None].astype(np.float32)), axis=1)
        if contract.head == "raw":
            raw = np.zeros((4 + len(contract.names), len(boxes)), np.float32)
            raw[:2] = ((boxes[:, :2] + boxes[:, 2:]) / 2).T
            raw[2:4] = (boxes[:, 2:] - boxes[:, :2]).T
            raw[4 + ids, np.arange(len(boxes))] = scores
            output = raw
        return output if self._backend.finite else np.full_like(output, np.nan)


def _golden_boxes(release: Release) -> dict[bytes, _Seen]:
    """Return what each golden image of ``release`` expects, in pixels of its tensor, by the tensor's bytes."""
    found = {}
    for image in release.golden:
        tensor, at = letterbox(decode(image.data, DecodeLimits()), release.contract)
        gain = np.array((at.gain_x, at.gain_y) * 2, np.float32)
        pad = np.array((at.pad_x, at.pad_y) * 2, np.float32)
        seen = image.expected
        found[tensor.tobytes()] = ((seen.boxes * gain + pad).astype(np.float32), seen.scores, seen.classes)
    return found
