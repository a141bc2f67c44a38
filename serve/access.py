"""Who may ask: API keys, kept as digests, and what each of them opens.

A key's text is ``sy_<id>_<secret>``. The id is public and finds the key; the secret is 192 random bits, of which only
the SHA-256 is kept. A slow hash protects what people choose and others can guess; nobody guesses 192 random bits,
however fast the hash, and a slow one would let anybody spend the service's time by sending keys.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

PREFIX: Final = "sy"
SECRET_BYTES: Final = 24
KEY_ID: Final = re.compile(r"[a-z0-9]{8,12}", re.ASCII)
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 10


class Scope(StrEnum):
    """What a key may open."""

    PREDICT = "predict"
    """Detection and what belongs to it: everything that the other two do not name."""
    ADMIN = "admin"
    """Promote and roll back, and read how a rollout stands."""
    METRICS = "metrics"
    """``GET /metrics``."""


@dataclass(frozen=True, slots=True)
class Retiring:
    """The secret that a rotation replaced. digest: SHA-256, 32 bytes. until: unix seconds at which it opens nothing."""

    digest: bytes
    until: float


@dataclass(frozen=True, slots=True)
class AccessKey:
    """One key. Times are unix seconds; ``expires`` None means never."""

    key_id: str
    """Public name of the key in logs and limits: 8 to 12 of ``a-z0-9``, the same through rotations."""
    name: str
    """What people call it: 1 to 64 of ``A-Za-z0-9._-``."""
    digest: bytes
    """SHA-256 of the secret, 32 bytes."""
    scopes: frozenset[Scope]
    created: float
    """When the secret was made."""
    expires: float | None = None
    rate_per_s: float | None = None
    """Most requests a second over the whole service, > 0; None for no limit."""
    concurrency: int | None = None
    """Most requests at once over the whole service, >= 1; None for no limit."""
    retiring: Retiring | None = None
    """The secret before, while both are valid."""


class Limits(Protocol):
    """The limits of keys over the whole service; called once around every request that carries a valid key."""

    async def enter(self, key: AccessKey) -> None:
        """Let a request of ``key`` in; returns within the request's deadline.

        Raises CapacityError, which is answered as ``serve/errors.py`` says; ``leave`` is not called then.
        """
        ...

    def leave(self, key: AccessKey) -> None:
        """Note that a request that was let in has ended, however it ended."""
        ...


class AccessKeys:
    """Keys to look up; never changes."""

    def __init__(self, keys: Iterable[AccessKey] = (), *, other: AccessKey | None = None) -> None:
        """Hold ``keys``, whose ids differ. other: the key that any text without a known id is compared with."""
        self._by_id = {key.key_id.encode("ascii"): key for key in keys}
        # What is compared with where there is nothing to compare with: no text has this digest.
        self._other = other or AccessKey("", "", secrets.token_bytes(32), frozenset(), 0.0)

    def __iter__(self) -> Iterator[AccessKey]:
        """Yield the keys, without the other one."""
        return iter(self._by_id.values())

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._by_id)

    def find(self, text: bytes, now: float) -> AccessKey | None:
        """Return the key that ``text`` is, None where it is none or is past its time at ``now`` (unix seconds).

        One lookup, one SHA-256 and one comparison of digests in constant time, whether or not the id is known.
        """
        parts = text.split(b"_", 2)
        key, secret = self._other, text
        if len(parts) == 3 and parts[0] == b"sy" and parts[1] in self._by_id:  # noqa: PLR2004 - prefix, id, secret
            key, secret = self._by_id[parts[1]], parts[2]
        digest = hashlib.sha256(secret).digest()
        known = hmac.compare_digest(digest, key.digest)
        if not known and key.retiring is not None:
            known = hmac.compare_digest(digest, key.retiring.digest) and now < key.retiring.until
        return key if known and (key.expires is None or now < key.expires) else None


def issue(
    name: str,
    scopes: Collection[Scope],
    now: float,
    *,
    lifetime_s: float | None = None,
    rate_per_s: float | None = None,
    concurrency: int | None = None,
    key_id: str | None = None,
) -> tuple[AccessKey, str]:
    """Return a new key and its text, which exists nowhere else. key_id: None makes one up."""
    key_id = key_id or "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
    secret = secrets.token_hex(SECRET_BYTES)
    key = AccessKey(
        key_id,
        name,
        digest_of(secret),
        frozenset(scopes),
        now,
        None if lifetime_s is None else now + lifetime_s,
        rate_per_s,
        concurrency,
    )
    return key, f"{PREFIX}_{key_id}_{secret}"


def rotate(key: AccessKey, now: float, *, overlap_s: float) -> tuple[AccessKey, str]:
    """Return ``key`` with a new secret, and its text. The old secret opens for ``overlap_s`` seconds more, if it did.

    The new secret lives as long as the old one was to; one that was retiring already ends at once.
    """
    fresh, text = issue(key.name, key.scopes, now, key_id=key.key_id)
    until = now + overlap_s if key.expires is None else min(now + overlap_s, key.expires)
    return replace(
        key,
        digest=fresh.digest,
        created=now,
        expires=None if key.expires is None else now + key.expires - key.created,
        retiring=Retiring(key.digest, until) if until > now else None,
    ), text


def digest_of(secret: str) -> bytes:
    """Return the SHA-256 of ``secret`` in UTF-8, 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()
