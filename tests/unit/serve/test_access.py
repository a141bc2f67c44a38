"""API keys: what opens, what does not, and what a rotation leaves valid."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access import KEY_ID, AccessKey, AccessKeys, Scope, digest_of, issue, rotate

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = 1_000_000.0
HOUR = 3600.0


def test_a_new_key_opens_and_only_its_digest_is_kept() -> None:
    """The text has the documented form, the secret more than 128 random bits, and the key does not hold it."""
    key, text = issue("till", {Scope.PREDICT}, NOW)
    prefix, key_id, secret = text.split("_")
    assert (prefix, key_id) == ("sy", key.key_id)
    assert KEY_ID.fullmatch(key_id)
    assert len(bytes.fromhex(secret)) * 8 >= 128
    assert key.digest == hashlib.sha256(secret.encode()).digest()
    assert secret not in repr(key)
    assert AccessKeys([key]).find(text.encode(), NOW) is key
    assert issue("till", {Scope.PREDICT}, NOW)[1] != text


def other_secret(text: str) -> str:
    """Return the key's text with another secret."""
    return text[:-1] + ("0" if text[-1] != "0" else "1")


@pytest.mark.parametrize(
    "spoil",
    [
        other_secret,
        lambda text: text + "0",
        lambda text: text[:-1],
        lambda text: text.upper(),
        lambda text: text.replace("sy_", "sz_"),
        lambda text: text.replace("sy_", ""),
        lambda text: text.rpartition("_")[2],
        lambda text: "sy__" + text.rpartition("_")[2],
        lambda text: "sy_unknown234_" + text.rpartition("_")[2],
        lambda _: "",
        lambda _: "sy_",
    ],
)
def test_what_is_not_the_key_opens_nothing(spoil: Callable[[str], str]) -> None:
    """A digit more, less or other, another id, another prefix, half of it."""
    key, text = issue("till", {Scope.PREDICT}, NOW)
    assert AccessKeys([key]).find(spoil(text).encode(), NOW) is None


@given(st.binary(max_size=200))
def test_no_bytes_are_a_key_by_chance(text: bytes) -> None:
    """Whatever a header holds, the lookup answers, and with no key."""
    key, _ = issue("till", set(Scope), NOW)
    assert AccessKeys([key]).find(text, NOW) is None
    assert AccessKeys().find(text, NOW) is None


@pytest.mark.parametrize("text", [b"sy_unknown234_00", b"", b"sy_known23456_wrong", b"junk", b"a_b_c_d"])
def test_every_refusal_costs_one_digest_and_one_comparison(monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """Nobody learns from the time whether a key's id exists."""
    calls: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counted(one: bytes, two: bytes) -> bool:
        calls.append((len(one), len(two)))
        return compare(one, two)

    monkeypatch.setattr("serve.access.hmac.compare_digest", counted)
    key = AccessKey("known23456", "till", digest_of("right"), frozenset(Scope), NOW)
    assert AccessKeys([key]).find(text, NOW) is None
    assert calls == [(32, 32)]


def test_a_key_ends_when_it_is_to() -> None:
    """Valid up to the very second, then not."""
    key, text = issue("till", {Scope.PREDICT}, NOW, lifetime_s=60.0)
    keys = AccessKeys([key])
    assert keys.find(text.encode(), NOW + 59.9) is key
    assert keys.find(text.encode(), NOW + 60.0) is None


def test_both_secrets_open_during_an_overlap() -> None:
    """The key keeps id, scopes and limits; the old secret ends on time, the new one goes on."""
    key, old = issue("till", {Scope.PREDICT}, NOW, rate_per_s=5.0, concurrency=2)
    after, new = rotate(key, NOW + 10, overlap_s=HOUR)
    keys = AccessKeys([after])
    assert old != new
    assert (after.key_id, after.name, after.scopes) == (key.key_id, key.name, key.scopes)
    assert (after.rate_per_s, after.concurrency) == (5.0, 2)
    for text, opens in ((old, True), (new, True)):
        assert (keys.find(text.encode(), NOW + 10 + HOUR - 1) is after) is opens
    assert keys.find(old.encode(), NOW + 10 + HOUR) is None
    assert keys.find(new.encode(), NOW + 10 + HOUR) is after


def test_a_rotation_without_overlap_ends_the_old_secret_at_once() -> None:
    """What leaked must not live on."""
    key, old = issue("till", {Scope.PREDICT}, NOW)
    after, new = rotate(key, NOW, overlap_s=0.0)
    assert AccessKeys([after]).find(old.encode(), NOW) is None
    assert AccessKeys([after]).find(new.encode(), NOW) is after


def test_a_second_rotation_ends_the_oldest_secret() -> None:
    """At most two secrets open, however often one rotates."""
    key, first = issue("till", {Scope.PREDICT}, NOW)
    key, second = rotate(key, NOW, overlap_s=HOUR)
    key, third = rotate(key, NOW, overlap_s=HOUR)
    opens = [AccessKeys([key]).find(text.encode(), NOW) is key for text in (first, second, third)]
    assert opens == [False, True, True]


def test_a_rotated_key_lives_as_long_again() -> None:
    """From the rotation on; the old secret never outlives its own time."""
    key, old = issue("till", {Scope.PREDICT}, NOW, lifetime_s=100.0)
    after, new = rotate(key, NOW + 90, overlap_s=HOUR)
    keys = AccessKeys([after])
    assert after.expires == NOW + 190
    assert keys.find(old.encode(), NOW + 99) is after
    assert keys.find(old.encode(), NOW + 100) is None
    assert keys.find(new.encode(), NOW + 189) is after


def test_text_without_a_known_id_is_compared_with_the_other_key() -> None:
    """A key that somebody chose in the settings has no id, and may look like anything."""
    other = AccessKey("admin_key", "admin_key", digest_of("sy_a_b"), frozenset({Scope.ADMIN}), 0.0)
    key, text = issue("till", {Scope.PREDICT}, NOW)
    keys = AccessKeys([key], other=other)
    assert keys.find(b"sy_a_b", NOW) is other
    assert keys.find(text.encode(), NOW) is key
    assert keys.find(b"sy_a_c", NOW) is None
    assert (list(keys), len(keys)) == ([key], 1)
