"""The protocol that every runtime fulfils: load and infer, warm and forget a shape, free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import threading

    import numpy as np
    from numpy.typing import NDArray

    from models.types import Release

Shape = tuple[int, int]
"""(height, width) of a tensor in pixels, both multiples of the release's stride."""


class Ahead(NamedTuple):
    """A shape that will be warmed as soon as a release is loaded, for its lanes or for a call that is ``alone``."""

    shape: Shape
    alone: bool = False


class Beside(NamedTuple):
    """What a load beside a release that answers knows, so that it can be done where it disturbs least.

    ahead: what will be warmed, the surest first.
    abandoned: set when nobody waits for the load any more.
    """

    ahead: tuple[Ahead, ...]
    abandoned: threading.Event


@dataclass(frozen=True, slots=True)
class Plan:
    """How a session is driven: calls in flight at once (>= 1), images a call at most (>= 1).

    alone: whether a call that has the session to itself can use more of the machine than a lane does.
    decodes: whether lanes decode their images themselves, one image a call. So it is where the processor that decodes
    is the one that detects: more threads than cores would only push each other's data out of the caches. One of the
    lanes then waits with its work at hand for a thread to become free.
    confined: whether a call that is not alone runs on the thread that makes it and starts no other, so that it may be
    kept on one processor.
    """

    lanes: int
    max_batch: int
    alone: bool = False
    decodes: bool = False
    confined: bool = False

    @property
    def workers(self) -> int:
        """Return how many threads drive the lanes."""
        return max(self.lanes - 1, 1) if self.decodes else self.lanes


class Session(Protocol):
    """One release loaded into one runtime. Methods block and run on worker threads, never on an event loop."""

    @property
    def plan(self) -> Plan:
        """Return how many calls may run at once and how many images each may hold."""
        ...

    def infer(self, batch: NDArray[np.uint8], lane: int, *, alone: bool = False) -> NDArray[np.float32]:
        """Run the network on ``batch``, uint8 (n, h, w, 3) RGB, on lane ``lane`` (0 to plan.lanes - 1).

        ``alone`` says that nothing else runs or waits; it may change the time taken, never the answer.

        Returns float32 (n, k, 6) for an end2end head or (n, 4 + classes, anchors) for a raw one; the array
        belongs to the caller. At most one call runs on a lane at a time. Raises BackendError.
        """
        ...

    def warm(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> bool:
        """Make batches of ``shape`` as fast as they get, on the lanes or ``alone``. Raises BackendError.

        copy: 0 for what one lane needs; 1 and up for what so many more lanes need that run this shape at the same time.
        Returns whether that changed how they run; False when it is not worth its memory. May run while ``infer`` does.
        Answers move by at most 0.5 pixel of the tensor and 0.01 of score by it.
        """
        ...

    def forget(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> None:
        """Free what ``warm`` made for ``shape``, if anything; ``infer`` still takes the shape. May run beside it."""
        ...

    def shape_cost(self, shape: Shape, *, alone: bool = False, copy: int = 0) -> int:
        """Return an estimate of the bytes that such a ``warm`` keeps for ``shape``, >= 0."""
        ...

    def distrust(self) -> bool:
        """Have all loads of the release make anew what this one found on disk; return whether it found anything."""
        ...

    def close(self) -> None:
        """Free what the release holds; no call may run or follow. Idempotent."""
        ...


class Backend(Protocol):
    """A runtime: makes sessions out of releases."""

    @property
    def name(self) -> str:
        """Return the runtime's name, as answers carry it in ``backend``."""
        ...

    def plans(self) -> tuple[Plan, ...]:
        """Return the plans worth measuring on this hardware, the likeliest first; at least one."""
        ...

    def load(self, release: Release, plan: Plan | None = None, beside: Beside | None = None) -> Session:
        """Load ``release`` to be driven by ``plan``, None meaning the first of ``plans``; blocks.

        beside: given where another release answers meanwhile. It changes where work is done, never what comes of it.

        Raises ReleaseRejectedError or ReleaseFaultError with step ``load``.
        """
        ...
