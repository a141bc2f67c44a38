"""The order that comes with a promotion: which gates are waived, and which trials come before the commit."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, NoReturn

from models.errors import InvalidOptionError

MAX_TRIAL_S: Final = 7 * 24 * 3600.0
"""Longest shadow or canary step (seconds)."""
MAX_STEPS: Final = 16
MAX_REASON: Final = 500
"""Most characters of a reason: it is stored in a tag."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a promotion asks for beside the version. Raises InvalidOptionError for values outside their ranges.

    allow_contract_change: serve the version although its classes, task or stride differ from what clients know.
    force: why the quality and latency gates are waived, latencies in trials and on probation included, at most 500
    characters; "" waives nothing.
    shadow_s: time for which the candidate runs beside the serving version unseen (seconds, 0 for none).
    shadow_fraction: share of live images that it is shown meanwhile, above 0, at most 1.
    canary: rising shares of requests, above 0 and below 1, that it answers step by step; () for none.
    step_s: length of each canary step (seconds, > 0).
    """

    allow_contract_change: bool = False
    force: str = ""
    shadow_s: float = 0.0
    shadow_fraction: float = 0.1
    canary: tuple[float, ...] = ()
    step_s: float = 300.0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, in one sentence."""
        # Fields come out of anybody's JSON: their types are not what the annotations promise.
        allow: object = self.allow_contract_change
        force: object = self.force
        if not isinstance(allow, bool):
            _refuse("allow_contract_change is neither true nor false")
        if not isinstance(force, str) or len(force) > MAX_REASON:
            _refuse(f"force is not a reason of at most {MAX_REASON} characters")
        if force and not force.strip():
            _refuse("force gives a blank reason; say why the gates are waived")
        if not _number(self.shadow_s) or not 0.0 <= self.shadow_s <= MAX_TRIAL_S:
            _refuse(f"shadow_s is not a number of seconds from 0 to {MAX_TRIAL_S:.0f}")
        if not _number(self.shadow_fraction) or not 0.0 < self.shadow_fraction <= 1.0:
            _refuse("shadow_fraction is not a share above 0 and at most 1")
        if not _number(self.step_s) or not 0.0 < self.step_s <= MAX_TRIAL_S:
            _refuse(f"step_s is not a number of seconds above 0 and at most {MAX_TRIAL_S:.0f}")
        _check_canary(self.canary)

    @property
    def length_s(self) -> float:
        """Return how long all trials take together when none is cut short (seconds)."""
        return self.shadow_s + len(self.canary) * self.step_s


def to_document(order: Order) -> dict[str, Any]:
    """Return the order as a JSON object, every field given."""
    return asdict(order) | {"canary": list(order.canary)}


def from_document(document: object) -> Order:
    """Return the order that a JSON object asks for; absent fields take their defaults.

    Raises InvalidOptionError, in one sentence: no object, an unknown field, a value outside its range.
    """
    if not isinstance(document, dict):
        _refuse("the order is not a JSON object")
    unknown = sorted(str(name) for name in set(document) - set(Order.__dataclass_fields__))
    if unknown:
        _refuse(f"the order has no field {unknown[0][:40]!r}; it has {', '.join(Order.__dataclass_fields__)}")
    fields = dict(document)
    if "canary" in fields:
        if not isinstance(fields["canary"], list):
            _refuse("canary is not a list of shares")
        fields["canary"] = tuple(fields["canary"])
    return Order(**fields)


def encode(order: Order) -> str:
    """Return the order as one line of JSON."""
    return json.dumps(to_document(order), sort_keys=True, allow_nan=False)


def decode(text: str | None) -> Order:
    """Return the order that ``encode`` wrote; anything else means no options: every gate, no trial."""
    try:
        return from_document(json.loads(text or ""))
    except (ValueError, RecursionError, InvalidOptionError):
        return PLAIN


def _check_canary(canary: object) -> None:
    if not isinstance(canary, tuple) or len(canary) > MAX_STEPS:
        _refuse(f"canary is not a list of at most {MAX_STEPS} shares")
    if any(not _number(share) or not 0.0 < share < 1.0 for share in canary):
        _refuse("canary holds a share that is not above 0 and below 1; the commit itself is the last step")
    if any(later <= earlier for earlier, later in pairwise(canary)):
        _refuse("the shares of canary do not rise from step to step")


def _number(value: object) -> bool:
    # An integer of JSON may be beyond every float.
    with contextlib.suppress(OverflowError):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return False


def _refuse(what: str) -> NoReturn:
    msg = f"{what}; mend the promotion's options"
    raise InvalidOptionError(msg)


PLAIN: Final = Order()
"""What a promotion without options asks for, and what an alias moved by hand means: every gate, no trial."""
