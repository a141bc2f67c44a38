"""What clients may suffer, said once for all faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients import regressions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clients import Clients, Exchange
    from running import Service

IN_FLIGHT = 8
"""Most requests that a dying replica may take with it: those of the clients that had one there."""


def failed(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Return the requests that were not answered with a detection."""
    return [exchange for exchange in exchanges if exchange.status != 200]


def nobody_suffered(load: Clients, *, lost: int = 0, least: int = 20) -> None:
    """Demand that at most ``lost`` requests failed (I1) and that no version came back behind a newer one (I7)."""
    assert len(load.exchanges) >= least
    assert len(failed(load.exchanges)) <= lost, failed(load.exchanges)[: lost + 5]
    assert regressions(load.exchanges) == []


def other_version(service: Service) -> str:
    """Return that of the versions 1 and 2 which does not serve."""
    return "2" if service.rollout()["serving"] == "1" else "1"


def serves(rollout: dict[str, Any], version: str, replicas: int = 2) -> bool:
    """Return whether every replica answers with ``version`` and nothing is left to do."""
    there = [each["version"] for each in rollout["replicas"]] == [version] * replicas
    return bool(rollout["state"] in {"serving", "probation"} and rollout["serving"] == version and there)


def converged(service: Service, version: str, *, within_s: float = 90.0) -> None:
    """Wait until both replicas serve ``version``."""
    service.wait_until(lambda rollout: serves(rollout, version), within_s=within_s)


def latencies(exchanges: Iterable[Exchange]) -> list[float]:
    """Return the seconds that each answered request took, in ascending order."""
    return sorted(each.answered - each.sent for each in exchanges if each.status == 200)


def quantile(ascending: list[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of the values lie."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
