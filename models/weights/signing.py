"""Ed25519 signatures (RFC 8032) that bind a release's content to its name and version. No files, no clock.

Signed are the canonical bytes of ``{"manifest_sha256", "model", "version"}``: JSON with sorted keys, no spaces, UTF-8.
A signature that is moved to another version, another model or other content therefore does not verify. As text, the
value of the tag ``registry.SIGNATURE_TAG``: ``ed25519-1:<key id>:<base64 of 64 bytes>``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SCHEME = "ed25519-1"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
ID_DIGITS = 16
MAX_TEXT = 256
"""Longest signature that is looked at (characters); a real one has 117."""
_ID = re.compile(r"[0-9a-f]{16}\Z")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The half of a key pair that verifies. raw: 32 bytes, as RFC 8032 encodes them."""

    raw: bytes

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of ``raw`` in 64 hex digits: what two people compare."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def ident(self) -> str:
        """Return the key id that signatures carry: the first 16 digits of the fingerprint."""
        return self.fingerprint[:ID_DIGITS]

    @property
    def text(self) -> str:
        """Return the key on one line: the base64 of ``raw``, 44 characters."""
        return base64.b64encode(self.raw).decode()

    def to_pem(self) -> bytes:
        """Return the key as PEM (SubjectPublicKeyInfo, RFC 8410), which openssl reads."""
        return Ed25519PublicKey.from_public_bytes(self.raw).public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def verifies(self, signature: Signature, model: str, version: str, digest: str) -> bool:
        """Return whether this key made ``signature`` for exactly this model, version and manifest digest."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature.value, message(model, version, digest))
        except (InvalidSignature, UnsupportedAlgorithm):
            return False
        return signature.key_id == self.ident


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The half of a key pair that signs; its bytes show in no representation."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new key from the system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes) -> SigningKey:
        """Read an unencrypted PEM (PKCS #8, RFC 8410). Raises ValueError where it holds no Ed25519 key."""
        try:
            key = serialization.load_pem_private_key(data, password=None)
        except (TypeError, UnsupportedAlgorithm) as error:  # encrypted, or of a kind that is not known
            raise ValueError(str(error)) from error
        if not isinstance(key, Ed25519PrivateKey):
            msg = "not an Ed25519 key"
            raise ValueError(msg)  # noqa: TRY004 - the file's content is wrong, not an argument's type
        return cls(key)

    def to_pem(self) -> bytes:
        """Return the key as unencrypted PEM (PKCS #8)."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @property
    def public(self) -> PublicKey:
        """Return the half that verifies."""
        raw = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return PublicKey(raw)

    def sign(self, model: str, version: str, digest: str) -> str:
        """Return the signature of this model, version and manifest digest (64 hex digits) as text."""
        value = self._private.sign(message(model, version, digest))
        return f"{SCHEME}:{self.public.ident}:{base64.b64encode(value).decode()}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as its text tells it. key_id: 16 hex digits, a claim until it verifies. value: 64 bytes."""

    key_id: str
    value: bytes


def message(model: str, version: str, digest: str) -> bytes:
    """Return the bytes that are signed."""
    signed = {"manifest_sha256": digest, "model": model, "version": version}
    return json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_signature(text: str) -> Signature:
    """Return the signature in ``text``. Raises ValueError where it is none, or of a format not known here."""
    scheme, _, rest = text[: MAX_TEXT + 1].partition(":")
    key_id, _, encoded = rest.partition(":")
    if len(text) > MAX_TEXT or scheme != SCHEME or not _ID.match(key_id):
        msg = "no signature of a known format"
        raise ValueError(msg)
    value = _decoded(encoded)
    if len(value) != SIGNATURE_BYTES:
        msg = "a signature of another length"
        raise ValueError(msg)
    return Signature(key_id, value)


def parse_public_key(data: bytes) -> PublicKey:
    """Return the key in ``data``: PEM, a line as OpenSSH writes it, or base64 of 32 bytes. Raises ValueError."""
    text = data.strip()
    try:
        if text.startswith(b"-----BEGIN"):
            key = serialization.load_pem_public_key(text)
        elif text.startswith(b"ssh-"):
            key = serialization.load_ssh_public_key(text)
        else:
            raw = _decoded(text.decode("ascii"))
            if len(raw) != KEY_BYTES:
                msg = "not 32 bytes"
                raise ValueError(msg)
            key = Ed25519PublicKey.from_public_bytes(raw)
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error
    if not isinstance(key, Ed25519PublicKey):
        msg = "not an Ed25519 key"
        raise ValueError(msg)  # noqa: TRY004 - see from_pem
    return PublicKey(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        msg = "not base64"
        raise ValueError(msg) from error
