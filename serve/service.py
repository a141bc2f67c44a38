"""The port through which the HTTP edge reaches the rest: engines, the rollout, the registry, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from models.rollout.order import PLAIN

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from models.rollout.order import Order
    from models.types import Answer, DetectOptions, Release, RequestContext
    from models.weights.registry import VersionInfo
    from serve.webhook import Delivery


OPERATOR: Final = "operator"
"""Who asks in the audit's words, where no key says."""


class Detector(Protocol):
    """What the edge asks of one model's engine; ``models.engine.engine.Engine`` fulfils it."""

    @property
    def serving(self) -> Release | None:
        """Return the release that answers now, or None before the first."""
        ...

    @property
    def generation(self) -> int:
        """Return the fleet's generation of the serving release, 0 before the first."""
        ...

    @property
    def backend_name(self) -> str:
        """Return the runtime's name."""
        ...

    async def detect(self, data: bytes, options: DetectOptions, context: RequestContext) -> Answer:
        """Answer one encoded image. Raises RequestError, CapacityError or BackendError."""
        ...


class Service(Protocol):
    """All that the HTTP edge knows of the process it runs in.

    Names given to the methods are those of ``engines``. Implementations bound every wait themselves.
    """

    @property
    def engines(self) -> Mapping[str, Detector]:
        """Return the engines by model name, in the order of the settings."""
        ...

    async def status(self, model: str) -> dict[str, object]:
        """Return the rollout's state as ``GET /v1/models/{model}/rollout`` shows it. Raises UnavailableError."""
        ...

    async def promote(
        self, model: str, version: str, *, reason: str = "promote", order: Order = PLAIN, who: str = OPERATOR
    ) -> dict[str, object]:
        """Make ``version`` the desired one under ``order``; return the rollout's state. reason, who: for the audit.

        Raises UnknownVersionError, ReleaseRejectedError (step ``promote``), RegistryError or UnavailableError.
        """
        ...

    async def rollback(self, model: str, *, who: str = OPERATOR) -> dict[str, object]:
        """Return to the version served before; return the rollout's state. who: for the audit.

        Raises ReleaseRejectedError where there is none, RegistryError or UnavailableError.
        """
        ...

    async def hint(self, model: str, delivery: Delivery) -> bool:
        """Say that the production alias may have moved; False, and nothing happens, where ``delivery`` is known.

        Raises UnavailableError.
        """
        ...

    async def arm(self, point: str, action: str) -> None:
        """Arm a fault point of ``serve/faults.py``; only tests ask for it. Raises InvalidOptionError."""
        ...

    async def versions(self, model: str) -> Sequence[VersionInfo]:
        """Return all versions of ``model``, oldest first. Raises RegistryError."""
        ...

    def readiness(self) -> str | None:
        """Return None when this process takes requests, else the reason why not."""
        ...

    async def metrics(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        ...
