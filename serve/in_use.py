"""What a home and its service use of a model: from the durable record, the registry and a running rollout. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.errors import ReleaseRejectedError
from models.rollout.policy import decode_pin
from models.weights.retention import InUse

if TYPE_CHECKING:
    from models.weights.cache import Committed
    from models.weights.registry import Desired
    from serve.client import Rollout


def digests_of(record: Committed) -> frozenset[str]:
    """Return the digests that a durable record needs: what serves, what served before, and what is pinned."""
    pin = decode_pin(record.pin)
    found = (record.digest, record.previous_digest, pin.target.digest if pin else None)
    return frozenset(digest for digest in found if digest)


def of_record(record: Committed | None) -> InUse:
    """Return the versions that the home's durable record needs."""
    if record is None:
        return InUse()
    pin = decode_pin(record.pin)
    return InUse(
        serving=frozenset((record.version,)),
        previous=frozenset((record.previous_version,)) if record.previous_version else frozenset(),
        pinned=frozenset((pin.target.version,)) if pin else frozenset(),
    )


def of_registry(desired: Desired | None, served: str | None) -> InUse:
    """Return what the registry says: the desired version, and the one that a fleet, here or elsewhere, serves."""
    return InUse(
        desired=frozenset((desired.version,)) if desired else frozenset(),
        serving=frozenset((served,)) if served else frozenset(),
    )


def of_rollout(state: Rollout, record: Committed | None) -> InUse:
    """Return what a running service uses.

    record: of the home in which the command works. Only it knows what a rollback returns to, so it must be this
    service's. Raises ReleaseRejectedError with step ``delete`` where it is not.
    """
    generation = 0 if record is None else record.generation
    if state["generation"] != generation:
        msg = (
            f"The home folder records generation {generation} of {state['model']} and the service has committed "
            f"{state['generation']}; do this where the service's home is, or again once its rollout has ended."
        )
        raise ReleaseRejectedError(msg, step="delete")
    return InUse(
        serving=frozenset((state["serving"],)) if state["serving"] else frozenset(),
        desired=frozenset((state["desired"],)) if state["desired"] else frozenset(),
        candidates=frozenset(replica["version"] for replica in state["replicas"] if replica["version"]),
    )
