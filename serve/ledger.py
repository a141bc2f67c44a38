"""The ledger of decisions in Ray's key-value store, which every process of a cluster reaches through the GCS.

About 0.5 ms a call. It survives every process but the head's; with Redis behind the GCS it survives that too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ray.experimental import internal_kv

from models.errors import LedgerError

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

_GRACE_S: Final = 0.5
"""How much later than the GCS client's own deadline ours strikes (seconds): it is for a client that never answers."""


class RayLedger:
    """Implements models.rollout.ledger.Ledger for one deployment; works in drivers, actors and replicas alike."""

    def __init__(self, deployment: str, *, timeout_s: float = 1.0) -> None:
        """Keep the namespace; nothing is opened. timeout_s: deadline of each call (seconds)."""
        # No colon: Ray 2.60 ends a namespace at the first one and would hand back keys that nobody wrote.
        self._namespace = f"steelyard-{deployment.replace(':', '-')}".encode()
        self._timeout_s = timeout_s

    async def put_if_absent(self, key: str, value: str) -> str:
        """Store ``value`` unless ``key`` exists; return what stands. Raises LedgerError."""
        client = _client()
        name, data = key.encode(), value.encode()
        added = await self._call(
            client.async_internal_kv_put(name, data, False, namespace=self._namespace, timeout=self._timeout_s)  # noqa: FBT003 - positional in Ray
        )
        if added == 1:
            # Requests wait on this answer while every replica holds: it costs no second call.
            return value
        # Somebody was first, or a call whose reply was lost was repeated: only reading back tells which.
        standing = await self.get(key)
        if standing is None:
            msg = "the ledger lost a record that was just written: ask again"
            raise LedgerError(msg)
        return standing

    async def get(self, key: str) -> str | None:
        """Return the value of ``key`` or None. Raises LedgerError."""
        call = _client().async_internal_kv_get(key.encode(), namespace=self._namespace, timeout=self._timeout_s)
        data: bytes | None = await self._call(call)
        return None if data is None else data.decode()

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with ``prefix``. Raises LedgerError."""
        call = _client().async_internal_kv_keys(prefix.encode(), namespace=self._namespace, timeout=self._timeout_s)
        raw: list[bytes] = await self._call(call)
        found = [key.decode() for key in raw]
        if not all(key.startswith(prefix) for key in found):
            msg = "the ledger listed keys that were not asked for: this release of Ray cannot be used"
            raise LedgerError(msg)
        return found

    async def delete(self, key: str) -> None:
        """Remove ``key``. Raises LedgerError."""
        call = _client().async_internal_kv_del(key.encode(), False, namespace=self._namespace, timeout=self._timeout_s)  # noqa: FBT003 - positional in Ray
        await self._call(call)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(call, self._timeout_s + _GRACE_S)
        except Exception as error:
            # Ray raises a dozen kinds here, from RpcError to RuntimeError; each means that nobody knows what happened.
            msg = "the ledger did not answer in time: ask again"
            raise LedgerError(msg) from error


def _client() -> Any:
    client = internal_kv.internal_kv_get_gcs_client()
    if client is None:
        msg = "this process is not connected to a cluster, so it has no ledger: connect first"
        raise LedgerError(msg)
    return client
