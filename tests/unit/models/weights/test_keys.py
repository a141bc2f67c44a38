"""The folder of keys: who is trusted, who signs, and what files may be."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from models.errors import InvalidOptionError, SettingsError
from models.weights.keys import KeyFolder
from models.weights.signing import SigningKey

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    """Return a folder of keys that is not there yet."""
    return KeyFolder(tmp_path / "keys")


def names(folder: KeyFolder) -> list[str]:
    """Return the names of the trusted keys."""
    return [key.name for key in folder.trusted() or ()]


def test_a_home_without_keys_trusts_nobody_and_makes_nothing(folder: KeyFolder) -> None:
    """None is not the same as no key: there is no rule yet."""
    assert folder.trusted() is None
    assert (folder.rows(), folder.trusted_or_none()) == ([], ())
    assert folder.signing() is None
    assert not folder.path.exists()


def test_a_new_pair_is_trusted_signs_and_is_the_owners_alone(folder: KeyFolder) -> None:
    """The private half is readable by nobody else, from its first byte on."""
    public = folder.new("mine")
    assert names(folder) == ["mine"]
    found = folder.signing()
    assert found is not None
    assert (found[0], found[1].public) == ("mine", public)
    assert (folder.path / "mine.key").stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.path.iterdir()) == ["mine.key", "mine.pub", "signing"]


def test_the_newest_pair_signs_and_the_older_one_is_still_trusted(folder: KeyFolder) -> None:
    """That is how a key is replaced: what the older one signed serves on."""
    folder.new("old")
    folder.new("next")
    found = folder.signing()
    assert found is not None
    assert found[0] == "next"
    assert names(folder) == ["next", "old"]
    folder.distrust("next")
    found = folder.signing()
    assert found is not None
    assert found[0] == "old"


def test_distrusting_the_last_key_leaves_the_rule_in_force(folder: KeyFolder) -> None:
    """An empty folder trusts nobody; a missing one asks for nothing. The private half stays, and no longer signs."""
    public = folder.new("mine")
    folder.distrust("mine")
    assert folder.trusted() == ()
    assert folder.signing() is None
    (row,) = folder.rows()
    assert (row.name, row.public, row.trusted, row.private, row.signs) == ("mine", public, False, True, False)
    folder.trust("mine", public)
    assert folder.signing() is not None


def test_a_key_is_trusted_once_and_under_a_name_of_its_own(folder: KeyFolder) -> None:
    """Neither a pair nor a name is overwritten."""
    mine = folder.new("mine")
    other = SigningKey.generate().public
    for name, public, words in (("again", mine, "already, as mine"), ("mine", other, "another name")):
        with pytest.raises(InvalidOptionError, match=words):
            folder.trust(name, public)
    folder.distrust("mine")
    with pytest.raises(InvalidOptionError, match="another name"):
        folder.trust("mine", other)
    with pytest.raises(InvalidOptionError, match="choose another"):
        folder.new("mine")
    with pytest.raises(InvalidOptionError, match="no key named nobody"):
        folder.distrust("nobody")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_cannot_be_a_path(folder: KeyFolder, name: str) -> None:
    """Nothing is written outside the folder."""
    for call in (lambda: folder.new(name), lambda: folder.distrust(name)):
        with pytest.raises(InvalidOptionError, match="cannot name a key"):
            call()


def test_a_file_that_is_no_key_counts_for_nothing(folder: KeyFolder, caplog: pytest.LogCaptureFixture) -> None:
    """The others still count, and the log and the list name it."""
    folder.new("good")
    (folder.path / "bad.pub").write_text("not a key")
    with caplog.at_level(logging.WARNING):
        assert names(folder) == ["good"]
    assert "bad.pub" in caplog.text
    assert [(row.name, row.public is None, row.trusted) for row in folder.rows()] == [
        ("bad", True, False),
        ("good", False, True),
    ]


def test_a_private_key_that_others_may_read_does_not_sign(folder: KeyFolder) -> None:
    """Nobody would notice that somebody else signs, too."""
    folder.new("mine")
    (folder.path / "mine.key").chmod(0o640)
    with pytest.raises(SettingsError, match="others may read the private key mine"):
        folder.signing()


def test_two_private_keys_need_a_word_which_of_them_signs(folder: KeyFolder) -> None:
    """A mounted secret has no such word by itself."""
    folder.new("a")
    folder.new("b")
    (folder.path / "signing").unlink()
    with pytest.raises(SettingsError, match="a, b can all sign"):
        folder.signing()
    (folder.path / "signing").write_text("a")
    found = folder.signing()
    assert found is not None
    assert found[0] == "a"


def test_halves_of_two_pairs_do_not_sign(folder: KeyFolder) -> None:
    """Signatures would name a key that did not make them."""
    folder.new("mine")
    (folder.path / "mine.pub").write_bytes(SigningKey.generate().public.to_pem())
    with pytest.raises(SettingsError, match="do not belong together"):
        folder.signing()
    (folder.path / "mine.key").write_bytes(b"text")
    with pytest.raises(SettingsError, match="unencrypted Ed25519"):
        folder.signing()


def test_a_folder_that_must_be_there_is_missed(tmp_path: Path) -> None:
    """A secret that is not mounted is no home that trusts nobody."""
    with pytest.raises(FileNotFoundError):
        KeyFolder(tmp_path / "mounted", must_exist=True).trusted()


def test_mounted_keys_may_be_links(folder: KeyFolder, tmp_path: Path) -> None:
    """Kubernetes mounts a secret's files so."""
    folder.new("mine")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "mine.pub").symlink_to(folder.path / "mine.pub")
    assert names(KeyFolder(mounted, must_exist=True)) == ["mine"]


def test_a_key_that_leads_nowhere_does_not_end_the_rule(folder: KeyFolder) -> None:
    """A dangling link, or a key that is distrusted at this moment, is one key less: the others still judge."""
    folder.new("mine")
    (folder.path / "gone.pub").symlink_to(folder.path / "nowhere")
    assert names(folder) == ["mine"]
