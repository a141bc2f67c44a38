"""The ledger over Ray's key-value store, with a client that loses replies, hangs and breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from models.errors import LedgerError
from serve import ledger
from serve.ledger import RayLedger


class FakeGcsClient:
    """The asynchronous key-value calls of Ray's GCS client, in memory."""

    def __init__(self) -> None:
        """Start empty and healthy."""
        self.data: dict[tuple[bytes, bytes], bytes] = {}
        self.fault: Any = None
        self.reads = 0
        self.repeats = False

    async def async_internal_kv_put(
        self,
        key: bytes,
        value: bytes,
        overwrite: bool,  # noqa: FBT001 - positional in Ray
        *,
        namespace: bytes,
        timeout: float,  # noqa: ASYNC109
    ) -> int:
        """Store and return how many keys were added."""
        await self._fail()
        assert timeout > 0
        fresh = (namespace, key) not in self.data
        if fresh or overwrite:
            self.data[namespace, key] = value
        return int(fresh and not self.repeats)

    async def async_internal_kv_get(self, key: bytes, *, namespace: bytes, timeout: float) -> bytes | None:  # noqa: ASYNC109
        """Return the value or None."""
        self.reads += 1
        await self._fail()
        assert timeout > 0
        return self.data.get((namespace, key))

    async def async_internal_kv_keys(self, prefix: bytes, *, namespace: bytes, timeout: float) -> list[bytes]:  # noqa: ASYNC109
        """Return keys by prefix."""
        await self._fail()
        assert timeout > 0
        return [key for space, key in self.data if space == namespace and key.startswith(prefix)]

    async def async_internal_kv_del(self, key: bytes, by_prefix: bool, *, namespace: bytes, timeout: float) -> int:  # noqa: ASYNC109, FBT001
        """Remove and return how many."""
        await self._fail()
        assert timeout > 0
        assert not by_prefix
        return int(self.data.pop((namespace, key), None) is not None)

    async def _fail(self) -> None:
        if self.fault == "hang":
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeGcsClient:
    """Return a client that stands in for the process's own."""
    fake = FakeGcsClient()
    monkeypatch.setattr(ledger.internal_kv, "internal_kv_get_gcs_client", lambda: fake)
    return fake


async def test_the_first_writer_wins_and_everybody_reads_it(client: FakeGcsClient) -> None:
    """Whoever comes second gets the first one's value; deployments do not see each other."""
    first, other = RayLedger("a"), RayLedger("b")
    assert await first.put_if_absent("m/decision/1", "ABORT") == "ABORT"
    assert await first.put_if_absent("m/decision/1", "COMMIT") == "ABORT"
    assert await other.get("m/decision/1") is None
    assert await first.keys("m/") == ["m/decision/1"]
    await first.delete("m/decision/1")
    assert await first.get("m/decision/1") is None
    assert client.data == {}


async def test_who_is_first_needs_no_second_call(client: FakeGcsClient) -> None:
    """Requests wait while a decision is written, so the flag that says so is believed."""
    assert await RayLedger("a").put_if_absent("m/decision/1", "COMMIT") == "COMMIT"
    assert client.reads == 0


async def test_a_call_that_was_repeated_below_finds_its_own_record(client: FakeGcsClient) -> None:
    """A first reply that was lost makes the store say that nothing was added; reading back finds what was."""
    client.repeats = True
    assert await RayLedger("a").put_if_absent("m/decision/1", "COMMIT") == "COMMIT"
    assert client.reads == 1


@pytest.mark.parametrize("fault", [RuntimeError("rpc"), OSError(), "hang"])
async def test_whatever_goes_wrong_is_one_error_within_the_deadline(client: FakeGcsClient, fault: Any) -> None:
    """Broken, refused or silent: LedgerError, never a hang."""
    client.fault = fault
    store = RayLedger("a", timeout_s=0.01)
    for call in (store.put_if_absent("k", "v"), store.get("k"), store.keys(""), store.delete("k")):
        with pytest.raises(LedgerError):
            await asyncio.wait_for(call, 5.0)


async def test_a_process_outside_a_cluster_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client at all is a clear error."""
    monkeypatch.setattr(ledger.internal_kv, "internal_kv_get_gcs_client", lambda: None)
    with pytest.raises(LedgerError, match="not connected"):
        await RayLedger("a").get("k")
