"""The Registry port: what Steelyard asks of a model registry. All methods block; call them on worker threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from models.rollout.order import PLAIN, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from models.weights.rollout_runs import RolloutRun

PRODUCTION = "production"
"""The alias that names the desired version of a model."""

STATE_TAG = "steelyard.state"
READY = "ready"
DIGEST_TAG = "steelyard.digest"
SOURCE_TAG = "steelyard.source_sha256"
SIGNATURE_TAG = "steelyard.signature"
"""Tag of a version: see ``signing.py``."""
PROMOTABLE_TAG = "steelyard.promotable"
"""``true``, or the reason why this version may not be promoted."""
PROMOTION_TAG = "steelyard.promotion"
"""Tag of the model, rewritten by every promote: its id tells a repeated promote of one version from a poll."""
SERVING_TAG = "steelyard.serving"
"""Tag of the model, written by the rollout actor only: JSON of generation, version and digest."""
EVALUATION_TAG = "steelyard.evaluation."
"""Start of a tag of a version, followed by the digest of the data: JSON of an ``Evaluation``."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One registered version. ``state`` is the ready tag's value or "" where it is missing.

    signature: the signature tag's value, "" where it is missing; the registry verifies nothing. standing, signed_by:
    what a home made of it, ``trust.Standing`` and the key id; "" and None where nobody asked.
    """

    model: str
    version: str
    digest: str
    state: str
    promotable: str
    source_sha256: str
    created: str
    """UTC, ISO 8601."""
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    signature: str = ""
    standing: str = ""
    signed_by: str | None = None


@dataclass(frozen=True, slots=True)
class Desired:
    """What the registry wants served: the production alias as read now.

    promotion: id of the latest promote or rollback; a new id lifts a rejection, the same one does not.
    state, digest, signature: of the version named; "" where the tag is missing.
    order: what that promotion asked for; an alias moved by hand asks for nothing special.
    """

    model: str
    version: str
    digest: str
    state: str
    promotion: str
    order: Order = PLAIN
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well one release detects on one labelled data set. Two are comparable where ``data`` is the same.

    data: 64 hex digits, of images and labels. data_name: folder and file of the ``data.yaml``, for people.
    release: digest of the release that was evaluated. map50_95, map50: mean average precision, 0 to 1.
    images, boxes: labelled ones in the data. method: libraries that computed it. created: UTC, ISO 8601.
    """

    data: str
    data_name: str
    release: str
    map50_95: float
    map50: float
    images: int
    boxes: int
    method: str
    created: str


class Registry(Protocol):
    """Named models with numbered, immutable versions, aliases and tags. Every method may raise RegistryError."""

    def models(self) -> list[str]:
        """Return the names of all registered models, sorted."""
        ...

    def versions(self, model: str) -> list[VersionInfo]:
        """Return all versions, oldest first, those not ready too. Raises UnknownModelError."""
        ...

    def version(self, model: str, version: str) -> VersionInfo:
        """Return one version. Raises UnknownModelError or UnknownVersionError."""
        ...

    def desired(self, model: str) -> Desired | None:
        """Return what the production alias names, or None where nothing was ever promoted."""
        ...

    def create_version(
        self,
        model: str,
        folder: Path,
        *,
        tags: Mapping[str, str],
        metrics: Mapping[str, float],
        sign: Callable[[str], str] | None = None,
    ) -> VersionInfo:
        """Store ``folder`` as a new version; the ready tag is set last, so a crash leaves nothing half visible.

        sign: returns the signature of the version of that number; None leaves it unsigned.
        """
        ...

    def sign_version(self, model: str, version: str, signature: str) -> None:
        """Put ``signature`` in place of an earlier one, in one write. Raises UnknownVersionError."""
        ...

    def fetch(self, model: str, version: str, destination: Path) -> None:
        """Download the version's files into ``destination`` (an existing, empty folder). Nothing is verified here."""
        ...

    def promote(self, model: str, version: str, *, promotion: str, reason: str, order: Order = PLAIN) -> Desired:
        """Point the production alias at ``version`` under the promotion id and order. Raises UnknownVersionError."""
        ...

    def record_evaluation(self, model: str, version: str, evaluation: Evaluation) -> None:
        """Keep an evaluation of ``version`` in place of an earlier one on the same data. Raises UnknownVersionError."""
        ...

    def evaluations(self, model: str, version: str) -> tuple[Evaluation, ...]:
        """Return the evaluations of ``version``, one a data set, oldest first. Raises UnknownVersionError."""
        ...

    def delete_version(self, model: str, version: str) -> None:
        """Delete a version and its files for good; its number is never used again.

        Raises UnknownVersionError, or ReleaseRejectedError with step ``delete`` where an alias names it.
        """
        ...

    def recorded_serving(self, model: str) -> str | None:
        """Return the version that ``record_serving`` wrote last, None where it never did. For retention only."""
        ...

    def record_serving(self, model: str, *, generation: int, version: str, digest: str) -> None:
        """Write what the fleet has committed, for people and audits; nobody reads it back to decide."""
        ...

    def record_rollout(self, run: RolloutRun) -> None:
        """Keep a finished rollout for people; repeating it with the same ident changes nothing."""
        ...
