"""What ``promote`` takes beside the version, from the words of the command line to an ``Order``."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from models.errors import InvalidOptionError

if TYPE_CHECKING:
    from models.rollout.order import Order

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(s|m|h)", re.ASCII)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%", re.ASCII)

AllowOption = Annotated[
    bool, typer.Option("--allow-contract-change", help="Serve it although its classes, task or stride differ.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Waive the quality and latency gates; say why with --reason.")
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why, for the record.")]
ShadowOption = Annotated[
    str | None,
    typer.Option("--shadow", help="First let it run unseen beside the serving version, e.g. 10m.", metavar="TIME"),
]
CanaryOption = Annotated[
    str | None,
    typer.Option(
        "--canary",
        help="Then let it answer rising shares of the clients that send X-Client-Id, e.g. 5%,25%.",
        metavar="SHARES",
    ),
]
StepOption = Annotated[
    str | None, typer.Option("--step", help="How long each canary share lasts; default 5m.", metavar="TIME")
]


def read_order(
    *,
    allow_contract_change: bool,
    force: bool,
    reason: str | None,
    shadow: str | None,
    canary: str | None,
    step: str | None,
) -> "Order":
    """Return what the options of ``promote`` ask for. Raises InvalidOptionError where they make no sense together."""
    from models.rollout.order import MAX_REASON, Order

    if reason is not None and not 0 < len(reason.strip()) <= len(reason) <= MAX_REASON:
        msg = f"--reason is not a text of 1 to {MAX_REASON} characters; say why, or leave it out"
        raise InvalidOptionError(msg)
    if force and reason is None:
        msg = '--force waives gates and needs a reason for the record; add --reason "..."'
        raise InvalidOptionError(msg)
    if step is not None and canary is None:
        msg = "--step is the length of a canary step, and there is none; add --canary 5%,25% or leave --step out"
        raise InvalidOptionError(msg)
    fields: dict[str, float] = {}
    if shadow is not None:
        fields["shadow_s"] = seconds("--shadow", shadow)
    if step is not None:
        fields["step_s"] = seconds("--step", step)
    return Order(
        allow_contract_change=allow_contract_change,
        force=reason if force and reason is not None else "",
        canary=() if canary is None else shares(canary),
        **fields,
    )


def seconds(option: str, text: str) -> float:
    """Return the seconds (> 0) of a time such as ``90s``, ``10m`` or ``1.5h``. Raises InvalidOptionError."""
    found = _DURATION.fullmatch(text.strip())
    value = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if value <= 0.0:
        msg = f"{option} {text} is no time above zero; write for example 90s, 10m or 1h"
        raise InvalidOptionError(msg)
    return value


def shares(text: str) -> tuple[float, ...]:
    """Return the shares (above 0, below 1, rising) of percentages such as ``5%,25%``. Raises InvalidOptionError."""
    found = [_PERCENT.fullmatch(part.strip()) for part in text.split(",")]
    values = [float(each[1]) / 100.0 for each in found if each is not None]
    if len(values) < len(found) or any(not 0.0 < value < 1.0 for value in values):
        msg = f"--canary {text} is no list of percentages above 0% and below 100%; write for example 5%,25%"
        raise InvalidOptionError(msg)
    if values != sorted(set(values)):
        msg = f"--canary {text} does not rise from step to step; write for example 5%,25%"
        raise InvalidOptionError(msg)
    return tuple(values)
