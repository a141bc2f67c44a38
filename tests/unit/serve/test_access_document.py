"""The access file's text: what is written is read back, and what is damaged is refused without being quoted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.access import AccessKey, Retiring, Scope, issue, rotate
from serve.access_document import MAX_BYTES, AccessFileError, parse, read, read_keys, render

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = st.integers(0, 4_000_000_000).map(float)
DIGESTS = st.binary(min_size=32, max_size=32)
KEYS = st.lists(
    st.builds(
        AccessKey,
        key_id=st.text("abcdefghij23456789", min_size=8, max_size=12),
        name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
        digest=DIGESTS,
        scopes=st.frozensets(st.sampled_from(Scope), min_size=1),
        created=SECONDS,
        expires=st.none() | SECONDS,
        rate_per_s=st.none() | st.floats(0.001, 1e6),
        concurrency=st.none() | st.integers(1, 10_000),
        retiring=st.none() | st.builds(Retiring, DIGESTS, SECONDS),
    ),
    max_size=5,
    unique_by=(lambda key: key.key_id, lambda key: key.name),
)


@given(KEYS)
def test_what_is_written_is_read_back(keys: list[AccessKey]) -> None:
    """Every field survives, in order."""
    assert parse(render(keys)) == tuple(keys)


def test_no_secret_is_written() -> None:
    """Neither the one that is valid nor the one that retires."""
    key, old = issue("till", {Scope.PREDICT}, 1.0)
    key, new = rotate(key, 2.0, overlap_s=60.0)
    text = render([key]).decode()
    for secret in (old, new):
        assert secret.rpartition("_")[2] not in text


def entry(**changes: Any) -> dict[str, Any]:
    """Return a good entry with ``changes``."""
    return {
        "id": "abcdefgh23",
        "name": "till",
        "digest": "0" * 64,
        "scopes": ["predict"],
        "created": "2026-01-01T00:00:00+00:00",
    } | changes


def document(*entries: dict[str, Any], **changes: Any) -> bytes:
    """Return an access file of ``entries``."""
    return json.dumps({"format": 1, "keys": list(entries)} | changes).encode()


def test_the_least_entry_is_enough() -> None:
    """What is left out is unlimited and never expires; an empty list is a list."""
    (key,) = parse(document(entry()))
    assert (key.expires, key.rate_per_s, key.concurrency, key.retiring) == (None, None, None, None)
    assert parse(document()) == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        document(format=2),
        document(keys={}),
        document(extra=1),
        document(entry(id="short")),
        document(entry(id="ABCDEFGH23")),
        document(entry(name="")),
        document(entry(name="a b")),
        document(entry(name="till\n")),
        document(entry(digest="0" * 63)),
        document(entry(digest="Z" * 64)),
        document(entry(scopes=[])),
        document(entry(scopes=["root"])),
        document(entry(created="yesterday")),
        document(entry(created="2026-01-01T00:00:00")),
        document(entry(rate_per_s=0)),
        document(entry(rate_per_s=-1)),
        document(entry(concurrency=0)),
        document(entry(concurrency=1.5)),
        document(entry(note="s3cret-s3cret")),
        document(entry(), entry(name="other")),
        document(entry(), entry(id="abcdefgh24")),
        document(entry(retiring={"digest": "0" * 64})),
    ],
)
def test_damage_is_refused_and_not_quoted(content: bytes) -> None:
    """A key that someone mistyped may be near its real one: no line of a log shows it."""
    with pytest.raises(AccessFileError) as refused:
        parse(content)
    text = str(refused.value)
    assert "\n" not in text
    for piece in ("s3cret", "0" * 20, "Z" * 20, "pydantic"):
        assert piece not in text


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    """None, which is something else than no keys."""
    assert read_keys(tmp_path / "access.json") is None
    (tmp_path / "file").write_bytes(b"")
    assert read_keys(tmp_path / "file" / "access.json") is None
    (tmp_path / "empty.json").write_bytes(document())
    assert read_keys(tmp_path / "empty.json") == ()


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A folder in its place, or one that would fill the memory."""
    with pytest.raises(AccessFileError):
        read(tmp_path)
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(AccessFileError, match="larger than"):
        read(tmp_path / "large")
