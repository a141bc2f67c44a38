"""How a deployment's rollout actor is made, found and reached."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

import ray

from serve.rollout_actor import DEPLOYMENT, NAMESPACE, RolloutActor, actor_name, fingerprint
from serve.rollout_client import RolloutClient, end_for_good, fingerprint_of, matching, unwrap
from serve.settings import without_secrets

if TYPE_CHECKING:
    from serve.settings import Settings

MOST_CALLS: Final = 8192
"""Calls that may wait in the actor at once: a long poll for each model of each replica, and people."""
CONNECT_DEADLINE_S: Final = 60.0


async def connect(settings: Settings, deployment: str = DEPLOYMENT) -> RolloutClient:
    """Return a client of the deployment's rollout actor, created if need be. Raises UnavailableError.

    The actor outlives the process that made it, shutdowns of the service included, and is restarted for ever. One that
    was made with other settings is ended and made anew: the ledger has all that it knew.
    """
    get = functools.partial(asyncio.to_thread, _get_or_create, settings, deployment)
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_S):
            handle = await matching(get, fingerprint(settings), ask=fingerprint_of, end=end_for_good)
    except (TimeoutError, ray.exceptions.RayError) as error:
        raise unwrap(error) from error

    async def renew(dead: Any) -> Any:
        # Without a look at its settings: of two deployments that overlap, only the one that starts may end an actor.
        await end_for_good(dead)
        return await get()

    return RolloutClient(handle, renew)


def prepare(settings: Settings, deployment: str = DEPLOYMENT) -> None:
    """Have the deployment's rollout actor made, and wait for nothing: the replicas then find it awake."""
    _get_or_create(without_secrets(settings), deployment)


def _get_or_create(settings: Settings, deployment: str) -> Any:
    actor = ray.remote(RolloutActor).options(
        name=actor_name(deployment),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=0,
        num_cpus=0,
        max_concurrency=MOST_CALLS,
        get_if_exists=True,
    )
    return actor.remote(settings, deployment)
