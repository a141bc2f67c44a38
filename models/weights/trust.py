"""Which keys this home trusts, and whether a version's signature lets it serve.

The rule. A version that carries a signature must verify against a trusted key. One without a signature is accepted
unless ``required``. Where no key was ever trusted, so that there is no folder of keys, nothing can be verified and
nothing is refused: that protects as little as accepting what is unsigned, which holds there, too. Once there is a
folder, the rule stands, also when the last key is distrusted.

Keys are read anew at every judgement, so trusting and distrusting needs no restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

from models.errors import ReleaseFaultError, ReleaseRejectedError
from models.weights.signing import parse_signature

if TYPE_CHECKING:
    from models.weights.keys import KeyFolder, TrustedKey
    from models.weights.release import SignatureCheck

Standing = Literal["trusted", "unsigned", "unchecked", "untrusted", "invalid"]
"""``unchecked``: signed, and no key was ever trusted here. ``untrusted``: by a key that is not trusted here.
``invalid``: it does not fit. The last two are refused."""

STEP = "verify"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a signature is worth here. key_id: that it names, "" without. name: the trusted key's here, "" without."""

    standing: Standing
    key_id: str = ""
    name: str = ""

    @property
    def told(self) -> str:
        """Return it as half a sentence."""
        match self.standing:
            case "trusted":
                return f"signed by {self.name} (key {self.key_id})"
            case "unsigned":
                return "not signed"
            case "unchecked":
                return f"signed by the unknown key {self.key_id or '(unreadable)'}, not checked: no key is trusted here"
            case "untrusted":
                return f"signed by the key {self.key_id}, which is not trusted here"
            case "invalid":
                return "its signature does not fit"


class SignatureRule:
    """Judges signatures. Every method reads a few small files; thread-safe."""

    def __init__(self, keys: KeyFolder, *, required: bool) -> None:
        """Keep the folder; nothing is read yet. required: refuse what is not signed."""
        self._keys, self.required = keys, required

    def find(self, model: str, version: str, digest: str, signature: str) -> Finding:
        """Return what ``signature``, "" for none, is worth. Raises ReleaseFaultError where the keys cannot be read."""
        if not signature:
            return Finding("unsigned")
        trusted = self._trusted()
        try:
            parsed = parse_signature(signature)
        except ValueError:
            return Finding("unchecked" if trusted is None else "invalid")
        if trusted is None:
            return Finding("unchecked", parsed.key_id)
        key = next((key for key in trusted if key.public.ident == parsed.key_id), None)
        if key is None:
            return Finding("untrusted", parsed.key_id)
        if not key.public.verifies(parsed, model, version, digest):
            return Finding("invalid", parsed.key_id, key.name)
        return Finding("trusted", parsed.key_id, key.name)

    def judge(self, model: str, version: str, digest: str, signature: str) -> Finding:
        """Return the finding where the version may serve.

        Args:
            model: name under which the registry knows it.
            version: as the registry counts it.
            digest: sha256 of its manifest in 64 hex digits, once that is known to be true.
            signature: as text, "" for none.

        Raises:
            ReleaseRejectedError: step ``verify``; it may not.
            ReleaseFaultError: step ``verify``; the keys cannot be read.

        """
        finding = self.find(model, version, digest, signature)
        what = f"Version {version} of {model}"
        if finding.standing == "invalid":
            _refuse(
                f"{what} has a signature that does not fit it: it is damaged, was made for another version, model or "
                "content, or something was replaced after signing. Register the weights again, or sign it anew with "
                f"`steelyard versions sign {model} {version}` once you know that it is the right one."
            )
        if finding.standing == "untrusted":
            _refuse(
                f"{what} is {finding.told}. If you know whose key that is, trust it with `steelyard keys "
                "trust`, then promote the version again."
            )
        if self.required and finding.standing != "trusted":
            why = "only signed versions may serve here (require_signed)"
            _refuse(
                f"{what} is {finding.told}, and {why}. Sign it with `steelyard versions sign {model} "
                f"{version}` where a trusted key is, then promote it again."
            )
        return finding

    def check(self, signature: str) -> SignatureCheck:
        """Return ``judge`` on this signature in the form that ``open_release`` asks."""

        def verify(model: str, version: str, digest: str) -> None:
            self.judge(model, version, digest, signature)

        return verify

    def _trusted(self) -> tuple[TrustedKey, ...] | None:
        try:
            return self._keys.trusted()
        except OSError as error:
            msg = f"The folder of trusted keys cannot be read ({error.strerror}), so no signature can be checked."
            raise ReleaseFaultError(msg, step=STEP) from error


def _refuse(message: str) -> NoReturn:
    raise ReleaseRejectedError(message, step=STEP)
