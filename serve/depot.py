"""Where the rollout actor gets a release's files: memory, the local cache, or the registry; verified each time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from models.errors import (
    RegistryError,
    ReleaseError,
    ReleaseFaultError,
    ReleaseRejectedError,
    UnknownModelError,
    UnknownVersionError,
)
from models.weights.cache import past_mending
from models.weights.release import open_release, read_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from models.types import Contract, Release
    from models.weights.cache import ReleaseCache
    from models.weights.registry import Registry, VersionInfo
    from models.weights.trust import Finding, SignatureRule
    from serve.faults import FaultPoints

_log = logging.getLogger(__name__)

MOST_DOWNLOADS: Final = 2
"""Releases that may be downloaded at once; the registry has more threads, which its other calls need."""


class Depot:
    """Fetches a release once a cluster, however many replicas and attempts ask for it."""

    def __init__(
        self,
        registry: Registry,
        cache: ReleaseCache,
        *,
        rule: SignatureRule,
        share: Callable[[Mapping[str, NDArray[np.uint8]]], Any],
        in_thread: Callable[..., Awaitable[Any]],
        in_registry_thread: Callable[..., Awaitable[Any]],
        faults: FaultPoints,
    ) -> None:
        """Start empty.

        Args:
            registry: where files come from.
            cache: where they are kept on disk.
            rule: which signatures count.
            share: makes files (uint8 arrays (size,)) available to all replicas and returns the handle; blocks.
            in_thread: runs a blocking call on a worker thread.
            in_registry_thread: the same for calls that may wait on the registry, which must not delay the others.
            faults: named points.
        """
        self._registry, self._cache, self._rule = registry, cache, rule
        self._share, self._faults = share, faults
        self._in_thread, self._in_registry_thread = in_thread, in_registry_thread
        self._handles: dict[str, Any] = {}
        self._contracts: dict[str, Contract] = {}
        self._proofs: dict[tuple[str, str, str], tuple[str, Finding]] = {}
        self._from_cache: set[str] = set()
        self._locks: dict[str, asyncio.Lock] = {}
        self._downloads: dict[str, asyncio.Task[Mapping[str, NDArray[np.uint8]]]] = {}

    async def stock(self, model: str, version: str, digest: str, *, signature: str | None = None) -> None:
        """Have the release here, verified.

        signature: as the registry told it with the alias, "" for none; None where it has not been asked.

        Raises ReleaseError, or RegistryError where the registry is unreachable and there is no copy here or only a
        damaged one, which the message names then.
        """
        await self._faults.hit("actor.before_fetch")
        # Before a byte is fetched: what is signed is the digest, to which the files are held afterwards.
        await self.prove(model, version, digest, signature=signature)
        await self._files(model, version, digest)
        await self._faults.hit("actor.after_verify")

    async def files(self, model: str, version: str, digest: str) -> Any:
        """Return the shared handle of the release's files, fetching and verifying them if need be."""
        await self.prove(model, version, digest)
        return await self._files(model, version, digest)

    async def signature(self, model: str, version: str, digest: str) -> str:
        """Return the signature under which the version was let in, "" for none; raises as ``prove``."""
        await self.prove(model, version, digest)
        return self._proofs[model, version, digest][0]

    def finding(self, model: str, version: str, digest: str) -> Finding | None:
        """Return what the version's signature was worth when it was last let in, None where it never was."""
        proof = self._proofs.get((model, version, digest))
        return None if proof is None else proof[1]

    async def prove(self, model: str, version: str, digest: str, *, signature: str | None = None) -> None:
        """Let the version in or refuse it by its signature: the one known here if that counts, else the registry's.

        A release that has served here needs no registry. One whose signature the registry has lost or spoilt since is
        still proven, for what was signed is its content.

        signature: see ``stock``; "" keeps it from asking the registry.

        Raises ReleaseRejectedError or ReleaseFaultError with step ``verify``, or RegistryError where only the registry
        could tell and does not answer.
        """
        known = await self._known(model, version, digest)
        refusal: ReleaseError | None = None
        if known:
            try:
                await self._let_in(model, version, digest, known, known)
            except ReleaseRejectedError as error:
                refusal = error
            else:
                return
        if signature is None and (refusal or self._rule.required or (known is None and not self._here(digest))):
            try:
                signature = (await self._in_registry_thread(self._info, model, version)).signature
            except RegistryError as error:
                if refusal is not None:
                    raise refusal from error
                raise
        await self._let_in(model, version, digest, signature or known or "", known)

    async def _known(self, model: str, version: str, digest: str) -> str | None:
        proof = self._proofs.get((model, version, digest))
        if proof is not None:
            return proof[0]
        found: str | None = await self._in_thread(self._cache.signatures.get, model, version, digest)
        return found

    async def _let_in(self, model: str, version: str, digest: str, signature: str, known: str | None) -> None:
        key = (model, version, digest)
        if signature or self._rule.required:
            finding = await self._in_thread(self._rule.judge, *key, signature)
        else:
            finding = self._rule.judge(*key, "")  # reads nothing, and a rollback waits for no thread
        self._proofs[key] = (signature, finding)
        if signature == known:
            return
        try:
            await self._in_thread(self._cache.signatures.keep, *key, signature)
        except ReleaseFaultError as error:
            _log.warning("%s A start without the registry will take the version for one that is not signed.", error)

    def _here(self, digest: str) -> bool:
        return digest in self._handles or self._cache.has(digest)

    async def _files(self, model: str, version: str, digest: str) -> Any:
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            if digest not in self._handles:
                files = await self._obtain(model, version, digest)
                self._handles[digest] = await self._in_thread(self._share, files)
            return self._handles[digest]

    async def contract(self, model: str, version: str, digest: str) -> Contract:
        """Return what clients of the release rely on, fetching it if need be; raises as ``stock``.

        Its signature is not asked for, since nothing is loaded: what serves may be signed by a key that has been
        distrusted since, and a better version must still be comparable with it.
        """
        await self._files(model, version, digest)
        return self._contracts[digest]

    def from_cache(self, digest: str) -> bool:
        """Return whether the release was taken from this machine's disk, verified, without asking the registry."""
        return digest in self._from_cache

    @property
    def held(self) -> frozenset[str]:
        """Return the digests whose files are in memory."""
        return frozenset(self._handles)

    def keep_only(self, digests: Collection[str]) -> None:
        """Let go of all other files in memory; replicas that use them keep theirs."""
        for digest in [held for held in self._handles if held not in digests]:
            del self._handles[digest]
            self._contracts.pop(digest, None)
            self._from_cache.discard(digest)
        for key in [known for known in self._proofs if known[2] not in digests]:
            del self._proofs[key]
        for digest in [known for known, lock in self._locks.items() if known not in digests and not lock.locked()]:
            del self._locks[digest]

    async def _obtain(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        damage: ReleaseFaultError | None = None
        try:
            release: Release | None = await self._in_thread(self._cache.open, model, version, digest)
        except ReleaseFaultError as error:
            _log.warning("%s; it is fetched anew", error)
            release, damage = None, error
        if release is not None:
            self._contracts[digest] = release.contract
            self._from_cache.add(digest)
            return release.files
        try:
            return await self._downloaded(model, version, digest)
        except RegistryError as error:
            if damage is None:
                raise
            raise past_mending(damage) from error

    async def _downloaded(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        # A thread cannot be cancelled: whoever asks again waits for the download under way, what comes too late lies in
        # the cache for the next one, and a slow store never takes the threads by which the alias is read.
        while digest not in self._downloads and len(self._downloads) >= MOST_DOWNLOADS:
            await asyncio.wait(self._downloads.values(), return_when=asyncio.FIRST_COMPLETED)
        if digest not in self._downloads:
            self._downloads[digest] = asyncio.create_task(self._download(model, version, digest))
            self._downloads[digest].add_done_callback(lambda download: self._forget(digest, download))
        return await asyncio.shield(self._downloads[digest])

    async def _download(self, model: str, version: str, digest: str) -> Mapping[str, NDArray[np.uint8]]:
        files: Mapping[str, NDArray[np.uint8]] = await self._in_registry_thread(self._fetch, model, version)
        await self._faults.hit("actor.after_fetch")
        release = await self._in_thread(open_release, model, version, files, expect_digest=digest)
        self._contracts[digest] = release.contract
        await self._in_thread(self._cache.replace, digest, files)
        return files

    def _forget(self, digest: str, download: asyncio.Task[Mapping[str, NDArray[np.uint8]]]) -> None:
        del self._downloads[digest]
        # Asked for, or an error that nobody waits for any more would be reported as lost.
        if not download.cancelled():
            download.exception()

    def _fetch(self, model: str, version: str) -> Mapping[str, NDArray[np.uint8]]:
        with tempfile.TemporaryDirectory(prefix="steelyard-fetch-") as folder:
            with _still_there(version):
                self._registry.fetch(model, version, Path(folder))
            return read_folder(Path(folder))

    def _info(self, model: str, version: str) -> VersionInfo:
        with _still_there(version):
            return self._registry.version(model, version)


@contextlib.contextmanager
def _still_there(version: str) -> Iterator[None]:
    try:
        yield
    except (UnknownModelError, UnknownVersionError) as error:
        msg = f"version {version} is no longer in the registry; promote one that is"
        raise ReleaseRejectedError(msg, step="fetch") from error
