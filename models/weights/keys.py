"""Keys on disk: ``NAME.pub`` for each key that is trusted, ``NAME.key`` for each that can sign here, both PEM.

The folder lies outside the registry, for whoever can write there could trust a key of their own. It may be a mounted
secret: links are followed, and nothing is written but by the commands that say so. The one that signs is the only
private key whose public half is trusted, or the one that the file ``signing`` names.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from models.errors import InvalidOptionError, SettingsError
from models.weights.durable import replace_file, sync_folder
from models.weights.signing import PublicKey, SigningKey, parse_public_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

PUBLIC: Final = ".pub"
PRIVATE: Final = ".key"
SIGNING: Final = "signing"
MAX_KEYS: Final = 256
MAX_KEY_BYTES: Final = 16 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A key whose signatures count. name: the file's, for people."""

    name: str
    public: PublicKey


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key for people. public: None where the file is no key. private: it can sign here. signs: it does."""

    name: str
    public: PublicKey | None
    trusted: bool
    private: bool
    signs: bool


class KeyFolder:
    """The keys in one folder; every call reads it anew. Methods raise OSError where the disk refuses."""

    def __init__(self, path: Path, *, must_exist: bool = False) -> None:
        """Keep the path; nothing is made. must_exist: a missing folder is a fault, not a home that trusts nobody."""
        self.path = path
        self._must_exist = must_exist

    def trusted(self) -> tuple[TrustedKey, ...] | None:
        """Return the trusted keys by name, None where there is no folder; files that are no key are left out."""
        found = []
        try:
            paths = [*self._files(PUBLIC)]
        except FileNotFoundError:
            if self._must_exist:
                raise
            return None
        for path in paths:
            try:
                found.append(TrustedKey(path.stem, parse_public_key(_read(path))))
            except FileNotFoundError:
                # Distrusted since the folder was read, or a link to nowhere: one key less, not a folder less.
                _log.warning("the trusted key %s is gone and counts for nothing", path.name)
            except ValueError:
                _log.warning("the file %s among the trusted keys is no Ed25519 public key and counts for nothing",
                             path.name)  # fmt: skip
        return tuple(found)

    def signing(self) -> tuple[str, SigningKey] | None:
        """Return name and key of the one that signs here, or None. Raises SettingsError where that is not clear."""
        trusted = {key.name: key.public for key in self.trusted() or ()}
        names = [path.stem for path in self._files(PRIVATE) if path.stem in trusted] if trusted else []
        chosen = self._chosen()
        if chosen is not None and chosen in names:
            names = [chosen]
        if not names:
            return None
        if len(names) > 1:
            msg = (
                f"the keys {', '.join(names)} can all sign: write the name of the one that shall into the file "
                f"{SIGNING!r} beside them"
            )
            raise SettingsError(msg)
        (name,) = names
        key = self._private(name)
        if key.public != trusted[name]:
            msg = f"the two halves of the key {name} do not belong together: restore them, or make a new pair"
            raise SettingsError(msg)
        return name, key

    def new(self, name: str) -> PublicKey:
        """Make a pair, trust its public half, and let it sign from now on. Raises InvalidOptionError."""
        self._check_new(name)
        key = SigningKey.generate()
        self._make()
        # In this order a crash leaves a private half that nobody trusts.
        replace_file(self.path / f"{name}{PRIVATE}", key.to_pem())
        replace_file(self.path / f"{name}{PUBLIC}", key.public.to_pem(), 0o644)
        replace_file(self.path / SIGNING, f"{name}\n".encode())
        return key.public

    def trust(self, name: str, public: PublicKey) -> None:
        """Trust a key under ``name``. Raises InvalidOptionError where the name is taken or the key is known."""
        known = next((key for key in self.trusted_or_none() if key.public == public), None)
        if known is not None:
            msg = f"that key is trusted already, as {known.name}"
            raise InvalidOptionError(msg)
        self._check_name(name)
        if (self.path / f"{name}{PUBLIC}").exists():
            msg = f"another key named {name} is trusted already; choose another name"
            raise InvalidOptionError(msg)
        if (self.path / f"{name}{PRIVATE}").exists() and self._private(name).public != public:
            msg = f"another key named {name} is here already; choose another name"
            raise InvalidOptionError(msg)
        self._make()
        replace_file(self.path / f"{name}{PUBLIC}", public.to_pem(), 0o644)

    def distrust(self, name: str) -> None:
        """Trust the key no longer; its private half, where there is one, stays and no longer signs."""
        self._check_name(name)
        try:
            (self.path / f"{name}{PUBLIC}").unlink()
        except FileNotFoundError:
            msg = f"no key named {name[:64]} is trusted here; `steelyard keys list` shows those that are"
            raise InvalidOptionError(msg) from None
        sync_folder(self.path)

    def rows(self) -> list[KeyRow]:
        """Return all keys by name, files that are no key included."""
        with contextlib.suppress(FileNotFoundError):
            public = {path.stem: path for path in self._files(PUBLIC)}
            private = {path.stem: path for path in self._files(PRIVATE)}
            signs: str | None = None
            with contextlib.suppress(SettingsError):
                found = self.signing()
                signs = found[0] if found else None
            rows = []
            for name in sorted(public.keys() | private.keys()):
                key: PublicKey | None = None
                with contextlib.suppress(ValueError, SettingsError):
                    key = parse_public_key(_read(public[name])) if name in public else self._private(name).public
                trusted = name in public and key is not None
                rows.append(KeyRow(name, key, trusted=trusted, private=name in private, signs=name == signs))
            return rows
        return []

    def trusted_or_none(self) -> tuple[TrustedKey, ...]:
        """Return the trusted keys, none where there is no folder."""
        try:
            return self.trusted() or ()
        except FileNotFoundError:
            return ()

    def _files(self, suffix: str) -> Iterator[Path]:
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(suffix))
        for name in names[:MAX_KEYS]:
            if _NAME.match(name.removesuffix(suffix)):
                yield self.path / name

    def _chosen(self) -> str | None:
        try:
            return (self.path / SIGNING).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def _private(self, name: str) -> SigningKey:
        path = self.path / f"{name}{PRIVATE}"
        if path.stat().st_mode & _OTHERS:
            msg = f"others may read the private key {name}: take that right away (chmod 600), or make a new pair"
            raise SettingsError(msg)
        try:
            return SigningKey.from_pem(_read(path))
        except ValueError:
            msg = f"the private key {name} is no unencrypted Ed25519 key in PEM: restore it, or make a new pair"
            raise SettingsError(msg) from None

    def _check_name(self, name: str) -> None:
        if not _NAME.match(name):
            msg = f"{name[:64]!r} cannot name a key; use up to 64 letters, digits, dots, dashes and underscores"
            raise InvalidOptionError(msg)

    def _check_new(self, name: str) -> None:
        self._check_name(name)
        if any((self.path / f"{name}{suffix}").exists() for suffix in (PUBLIC, PRIVATE)):
            msg = f"a key named {name} is here already; choose another name"
            raise InvalidOptionError(msg)

    def _make(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)
