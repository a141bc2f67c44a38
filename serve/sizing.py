"""How a machine's cores are shared out among replicas; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models.errors import SettingsError

if TYPE_CHECKING:
    from serve.settings import Settings

_RESOLUTION: Final = 10_000
"""Ray counts cores in ten-thousandths."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """What one replica takes. cpus: cores reserved, > 0. threads: of all its libraries together, >= 1."""

    cpus: float
    threads: int


def most_replicas(settings: Settings) -> int:
    """Return how many replicas there may be at once."""
    return settings.max_replicas or settings.replicas


def size_replica(settings: Settings, cores: int) -> Sizing:
    """Return what a replica takes on a machine of ``cores`` >= 1: what the settings say, else an equal share.

    The shares of all replicas never exceed the cores, so none waits for a place; a thread is the least that works.
    """
    cpus = settings.cpus
    if cpus is None:
        cpus = max(math.floor(cores / most_replicas(settings) * _RESOLUTION), 1) / _RESOLUTION
    return Sizing(cpus=cpus, threads=max(1, math.floor(cpus)))


def check_cores(settings: Settings, cores: int) -> None:
    """Refuse more replicas than fit on this machine's ``cores``. Raises SettingsError with one clear line."""
    count = most_replicas(settings)
    if settings.cpus is not None and settings.cpus * count > cores:
        msg = (
            f"{count} replicas of {settings.cpus:g} CPU cores do not fit on this machine's {cores}: "
            "lower STEELYARD_CPUS or the number of replicas, or leave STEELYARD_CPUS unset"
        )
        raise SettingsError(msg)
