"""Which version to bring to the fleet next, decided from what is desired, what serves and what was refused."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from models.rollout.messages import Failure, Target
from models.weights.registry import READY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.weights.registry import Desired

MAX_REJECTIONS = 32
"""Rejections remembered a model; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A target that was refused. retry_at: moment on the caller's clock (seconds), None for never; tries: >= 1."""

    target: Target
    failure: Failure
    retry_at: float | None
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Pin:
    """A rollback that stands for the alias until a newer promotion appears.

    over: (promotion, version) of the alias at the time of the rollback: what the pin overrides.
    passing: it ends with its own commit, because what it overrides is a newer promotion that has nothing to do with it.
    replaces: promotion of an earlier rollback, to which the alias may still be on its way; "" for none.
    """

    target: Target
    over: tuple[str, str]
    passing: bool = False
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Keep:
    """Serve on as now. note: why the desired version is not served, "" where it is."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Roll:
    """Bring this target to the fleet."""

    target: Target


@dataclass(frozen=True, slots=True)
class Refuse:
    """The desired version may not serve, now or ever; serve on as now."""

    version: str
    failure: Failure


Action = Keep | Roll | Refuse


def next_action(
    desired: Desired | None,
    serving: Target | None,
    rejections: Sequence[Rejection],
    pin: Pin | None,
    now: float,
) -> Action:
    """Return what to do next.

    Args:
        desired: the production alias as last read; None where it names nothing or was never read.
        serving: what the fleet has committed; None before the first commit.
        rejections: targets refused so far.
        pin: a rollback that stands for the alias, if it still overrides ``desired``.
        now: moment on the clock of ``Rejection.retry_at`` (seconds).
    """
    if pin is not None and stands(pin, desired):
        target = pin.target
    elif desired is None:
        # An empty answer names nothing to serve, which is never an order to stop serving.
        return Keep("no version is promoted")
    elif desired.state != READY:
        return Refuse(desired.version, Failure("fetch", f"version {desired.version} is not ready", permanent=True))
    elif not desired.digest:
        return Refuse(desired.version, Failure("fetch", f"version {desired.version} has no digest", permanent=True))
    else:
        target = Target(desired.version, desired.digest, desired.promotion)
    # A new promotion of what serves changes nothing; the same content under a new version is rolled, for its name.
    if serving is not None and (serving.version, serving.digest) == (target.version, target.digest):
        return Keep()
    rejection = find(rejections, target)
    if rejection is not None and (rejection.retry_at is None or now < rejection.retry_at):
        return Refuse(target.version, rejection.failure)
    return Roll(target)


def stands(pin: Pin, desired: Desired | None) -> bool:
    """Return whether ``pin`` still stands for the alias: no promotion other than those it knows has appeared."""
    if desired is None or follows(pin, desired):
        return True
    return (desired.promotion, desired.version) == pin.over or desired.promotion == pin.target.promotion


def follows(pin: Pin, desired: Desired) -> bool:
    """Return whether the alias has just followed the earlier rollback that ``pin`` replaces."""
    return bool(pin.replaces) and desired.promotion == pin.replaces


def wanted(desired: Desired | None, rejections: Sequence[Rejection]) -> Target | None:
    """Return the target that ``desired`` names, None where it names none that is ready or one refused for good."""
    if desired is None or not desired.digest or desired.state != READY:
        return None
    target = Target(desired.version, desired.digest, desired.promotion)
    return None if refused(rejections, target) else target


def find(rejections: Sequence[Rejection], target: Target) -> Rejection | None:
    """Return the rejection of exactly this content under this promotion, or None."""
    return next((r for r in rejections if r.target == target), None)


def refused(rejections: Sequence[Rejection], target: Target) -> bool:
    """Return whether exactly this content under this promotion was refused for good."""
    rejection = find(rejections, target)
    return rejection is not None and rejection.retry_at is None


def reject(
    rejections: Sequence[Rejection], target: Target, failure: Failure, *, now: float, backoff_s: float, cap_s: float
) -> tuple[Rejection, ...]:
    """Return ``rejections`` with ``target`` refused once more; a transient one doubles its wait up to ``cap_s``."""
    before = find(rejections, target)
    tries = 1 if before is None else before.tries + 1
    wait = min(cap_s, backoff_s * 2.0 ** min(tries - 1, 30))
    fresh = Rejection(target, failure, None if failure.permanent else now + wait, tries)
    return (*(r for r in rejections if r.target != target), fresh)[-MAX_REJECTIONS:]


def encode_pin(pin: Pin | None) -> str | None:
    """Return the pin as JSON for the durable record."""
    return None if pin is None else json.dumps(asdict(pin), sort_keys=True)


def decode_pin(text: str | None) -> Pin | None:
    """Return the pin that ``encode_pin`` wrote, None for None or for text that is none (it then stands for nothing)."""
    if text is None:
        return None
    try:
        raw = json.loads(text)
        promotion, version = raw["over"]
        return Pin(
            Target(**raw["target"]),
            (str(promotion), str(version)),
            bool(raw.get("passing", False)),
            str(raw.get("replaces", "")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def encode_rejections(rejections: Sequence[Rejection]) -> str | None:
    """Return what was refused for good as JSON for the durable record, None for nothing; what passes is left out."""
    lasting = [{"target": asdict(r.target), "failure": asdict(r.failure)} for r in rejections if r.retry_at is None]
    return json.dumps(lasting, sort_keys=True) if lasting else None


def decode_rejections(text: str | None) -> tuple[Rejection, ...]:
    """Return what ``encode_rejections`` wrote, the newest MAX_REJECTIONS of it; nothing for text that it did not."""
    if text is None:
        return ()
    try:
        return tuple(_rejection(raw) for raw in json.loads(text))[-MAX_REJECTIONS:]
    except (KeyError, TypeError, ValueError):
        return ()


def _rejection(raw: Any) -> Rejection:
    failure = raw["failure"]
    reason = Failure(str(failure["step"]), str(failure["reason"]), permanent=True)
    return Rejection(Target(**raw["target"]), reason, retry_at=None)
