"""The rule by which a signature lets a version serve, and what this machine remembers of signatures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.weights.cache import ReleaseCache
from models.weights.keys import KeyFolder
from models.weights.known_signatures import KnownSignatures
from models.weights.signing import SigningKey
from models.weights.trust import SignatureRule

if TYPE_CHECKING:
    from pathlib import Path

DIGEST, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    """Return a key that is trusted here."""
    folder = KeyFolder(tmp_path / "keys")
    folder.new("mine")
    found = folder.signing()
    assert found is not None
    return found[1]


def rule(tmp_path: Path, *, required: bool = False) -> SignatureRule:
    """Return the rule of this test's keys."""
    return SignatureRule(KeyFolder(tmp_path / "keys"), required=required)


def test_a_trusted_signature_lets_its_version_in(tmp_path: Path, key: SigningKey) -> None:
    """Whether signatures are demanded or not."""
    for required in (False, True):
        found = rule(tmp_path, required=required).judge("m", "3", DIGEST, key.sign("m", "3", DIGEST))
        assert (found.standing, found.key_id, found.name) == ("trusted", key.public.ident, "mine")
        assert found.told == f"signed by mine (key {key.public.ident})"


@pytest.mark.parametrize(
    ("model", "version", "digest"), [("m", "4", DIGEST), ("n", "3", DIGEST), ("m", "3", OTHER), ("m", "", DIGEST)]
)
def test_a_signature_that_was_moved_is_refused(
    tmp_path: Path, key: SigningKey, model: str, version: str, digest: str
) -> None:
    """To another version, another model, or a manifest that took the signed one's place."""
    with pytest.raises(ReleaseRejectedError, match="does not fit") as caught:
        rule(tmp_path).judge(model, version, digest, key.sign("m", "3", DIGEST))
    assert caught.value.step == "verify"
    assert caught.value.permanent


def test_an_unknown_key_and_text_that_is_no_signature_are_refused(tmp_path: Path, key: SigningKey) -> None:
    """A registry's writer can sign with a key of their own."""
    stranger = SigningKey.generate()
    with pytest.raises(ReleaseRejectedError, match=f"key {stranger.public.ident}, which is not trusted here"):
        rule(tmp_path).judge("m", "3", DIGEST, stranger.sign("m", "3", DIGEST))
    forged = stranger.sign("m", "3", DIGEST).replace(stranger.public.ident, key.public.ident)
    for text in (forged, "text", " ", "ed25519-2:x:y"):
        with pytest.raises(ReleaseRejectedError, match="does not fit"):
            rule(tmp_path).judge("m", "3", DIGEST, text)


def test_what_is_not_signed_serves_unless_signatures_are_demanded(tmp_path: Path, key: SigningKey) -> None:
    """The switch, and a command that helps."""
    assert rule(tmp_path).judge("m", "3", DIGEST, "").standing == "unsigned"
    with pytest.raises(ReleaseRejectedError, match=r"Version 3 of m is not signed.*versions sign m 3"):
        rule(tmp_path, required=True).judge("m", "3", DIGEST, "")
    assert key.public.ident


def test_a_home_that_never_trusted_a_key_checks_nothing_and_says_so(tmp_path: Path) -> None:
    """Others may begin to sign before this home knows of it; refusing would protect no more than a stripped tag."""
    text = SigningKey.generate().sign("m", "3", DIGEST)
    found = rule(tmp_path).judge("m", "3", DIGEST, text)
    assert found.standing == "unchecked"
    assert "not checked: no key is trusted here" in found.told
    assert rule(tmp_path).judge("m", "3", DIGEST, "text").standing == "unchecked"
    with pytest.raises(ReleaseRejectedError, match="only signed versions"):
        rule(tmp_path, required=True).judge("m", "3", DIGEST, text)


def test_distrusting_works_at_once_also_for_the_last_key(tmp_path: Path, key: SigningKey) -> None:
    """No restart, and no way back to a home that checks nothing."""
    judge, text = rule(tmp_path), key.sign("m", "3", DIGEST)
    assert judge.judge("m", "3", DIGEST, text).standing == "trusted"
    KeyFolder(tmp_path / "keys").distrust("mine")
    with pytest.raises(ReleaseRejectedError, match="not trusted here"):
        judge.judge("m", "3", DIGEST, text)


def test_keys_that_cannot_be_read_are_a_passing_fault(tmp_path: Path, key: SigningKey) -> None:
    """A secret that is not mounted yet refuses nothing for good, and lets nothing signed in."""
    missing = SignatureRule(KeyFolder(tmp_path / "mounted", must_exist=True), required=False)
    with pytest.raises(ReleaseFaultError) as caught:
        missing.judge("m", "3", DIGEST, key.sign("m", "3", DIGEST))
    assert (caught.value.step, caught.value.permanent) == ("verify", False)


def test_the_check_of_a_release_is_the_rule(tmp_path: Path, key: SigningKey) -> None:
    """What ``open_release`` is given."""
    check = rule(tmp_path).check(key.sign("m", "3", DIGEST))
    check("m", "3", DIGEST)
    with pytest.raises(ReleaseRejectedError):
        check("m", "4", DIGEST)


def test_a_machine_remembers_signatures_by_model_and_version(tmp_path: Path) -> None:
    """One release may have several; an empty one says that the version was not signed, none says nothing."""
    known = KnownSignatures(tmp_path)
    assert known.get("m", "1", DIGEST) is None
    known.keep("m", "1", DIGEST, "one")
    known.keep("m", "2", DIGEST, "")
    assert [known.get("m", version, DIGEST) for version in ("1", "2", "3")] == ["one", "", None]
    assert (known.get("n", "1", DIGEST), known.get("m", "1", OTHER)) == (None, None)
    known.keep("m", "1", DIGEST, "again")
    assert known.get("m", "1", DIGEST) == "again"
    assert not list(tmp_path.rglob(".partial-*"))
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.rglob("m@*"))


def test_names_and_digests_cannot_be_paths(tmp_path: Path) -> None:
    """They come from a registry that others write."""
    known = KnownSignatures(tmp_path / "cache")
    for model, version, digest in (("../m", "1", DIGEST), ("m", "../1", DIGEST), ("m", "1", "../x"), ("m", "", DIGEST)):
        known.keep(model, version, digest, "x")
        assert known.get(model, version, digest) is None
    assert not (tmp_path / "cache").exists()


def test_signatures_go_with_their_releases(tmp_path: Path) -> None:
    """Pruning the cache leaves none behind of what it drops, and keeps the others."""
    cache = ReleaseCache(tmp_path)
    cache.put(DIGEST, {})
    cache.put(OTHER, {})
    for digest in (DIGEST, OTHER):
        cache.signatures.keep("m", "1", digest, "x")
    cache.prune({OTHER})
    assert [cache.signatures.get("m", "1", digest) for digest in (DIGEST, OTHER)] == [None, "x"]


def test_a_full_disk_is_a_passing_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It never speaks against the release."""

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.weights.durable.os.fsync", fail)
    with pytest.raises(ReleaseFaultError, match="No space left"):
        KnownSignatures(tmp_path).keep("m", "1", DIGEST, "x")
    assert not list(tmp_path.rglob(".partial-*"))
