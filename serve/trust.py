"""What the settings say of signatures: which keys are trusted, whether every version must be signed, who signs here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from models.errors import ReleaseFaultError, SettingsError
from models.weights.keys import KeyFolder
from models.weights.trust import SignatureRule

if TYPE_CHECKING:
    from models.weights.registry import Registry, VersionInfo
    from models.weights.signing import SigningKey
    from serve.settings import Settings


def key_folder(settings: Settings) -> KeyFolder:
    """Return the folder of keys: the one that the settings name, which must exist then, else the home's own."""
    return KeyFolder(settings.keys_folder, must_exist=settings.keys is not None)


def rule_of(settings: Settings) -> SignatureRule:
    """Return the rule by which versions are let in."""
    return SignatureRule(key_folder(settings), required=settings.require_signed)


def check_trust(settings: Settings) -> None:
    """Refuse to start where no version could ever serve. Raises SettingsError in one sentence."""
    try:
        trusted = key_folder(settings).trusted()
    except OSError as error:
        msg = (
            f"STEELYARD_KEYS: the folder {settings.keys_folder} cannot be read ({error.strerror}): make or mount it, "
            "or unset it to use the home's own"
        )
        raise SettingsError(msg) from None
    if settings.require_signed and not trusted:
        msg = (
            f"STEELYARD_REQUIRE_SIGNED is set and no key is trusted in {settings.keys_folder}, so no version could "
            "serve: trust one with `steelyard keys trust FILE`, or make one with `steelyard keys new NAME`"
        )
        raise SettingsError(msg)


def signer(settings: Settings) -> tuple[str, SigningKey] | None:
    """Return name and key of the one that signs here, None where there is none. Raises SettingsError."""
    try:
        return key_folder(settings).signing()
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"the keys in {settings.keys_folder} cannot be read ({error.strerror}): mend the folder's rights"
        raise SettingsError(msg) from None


class VouchedVersions:
    """A registry's versions with ``standing`` and ``signed_by`` filled in."""

    def __init__(self, registry: Registry, rule: SignatureRule) -> None:
        """Keep both; nothing is read yet."""
        self._registry, self._rule = registry, rule

    def versions(self, model: str) -> list[VersionInfo]:
        """Return all versions, oldest first; raises as the registry does."""
        return [described(self._rule, info) for info in self._registry.versions(model)]


def described(rule: SignatureRule, info: VersionInfo) -> VersionInfo:
    """Return ``info`` with what its signature is worth here, as far as that can be told."""
    try:
        found = rule.find(info.model, info.version, info.digest, info.signature)
    except ReleaseFaultError:  # the list is still worth reading
        return replace(info, standing="unknown")
    return replace(info, standing=found.standing, signed_by=found.key_id or None)
