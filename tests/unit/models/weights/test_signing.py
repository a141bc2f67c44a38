"""Signatures: what they bind, what they look like, and that nothing else passes for one."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from models.weights.signing import (
    MAX_TEXT,
    PublicKey,
    Signature,
    SigningKey,
    message,
    parse_public_key,
    parse_signature,
)

KEY = SigningKey.from_pem(
    ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
)
DIGEST = "ab" * 32
NAMES = st.text(min_size=1, max_size=20)


def test_what_is_signed_is_canonical_json() -> None:
    """Sorted keys, no spaces: another program can make and check the same bytes."""
    assert message("m", "3", DIGEST) == b'{"manifest_sha256":"' + DIGEST.encode() + b'","model":"m","version":"3"}'


@given(NAMES, NAMES, NAMES)
def test_what_was_signed_verifies(model: str, version: str, digest: str) -> None:
    """Through text and back."""
    text = KEY.sign(model, version, digest)
    assert KEY.public.verifies(parse_signature(text), model, version, digest)
    assert len(text) <= MAX_TEXT


@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_a_signature_is_good_for_nothing_else(signed: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Neither for another model or version, nor for other content, nor with parts moved between them."""
    signature = parse_signature(KEY.sign(*signed))
    assert KEY.public.verifies(signature, *other) == (signed == other)


@given(st.integers(0, 511))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    """Anywhere in the signature's 64 bytes."""
    good = parse_signature(KEY.sign("m", "1", DIGEST))
    value = bytearray(good.value)
    value[bit // 8] ^= 1 << bit % 8
    assert not KEY.public.verifies(Signature(good.key_id, bytes(value)), "m", "1", DIGEST)


def test_another_key_does_not_verify() -> None:
    """Even where the signature names it."""
    other = SigningKey.generate().public
    good = parse_signature(KEY.sign("m", "1", DIGEST))
    assert not other.verifies(good, "m", "1", DIGEST)
    assert not other.verifies(Signature(other.ident, good.value), "m", "1", DIGEST)
    assert not KEY.public.verifies(Signature(other.ident, good.value), "m", "1", DIGEST)


@given(st.text(max_size=300))
def test_other_text_is_no_signature(text: str) -> None:
    """Whatever a registry's tag may hold ends in ValueError or in a signature that says the same again."""
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        parse_signature(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519-2:" + KEY.sign("m", "1", DIGEST).split(":", 1)[1],
        KEY.sign("m", "1", DIGEST)[:-4],
        KEY.sign("m", "1", DIGEST) + " ",
        KEY.sign("m", "1", DIGEST).replace(KEY.public.ident, KEY.public.ident.upper() + "G"),
        KEY.sign("m", "1", DIGEST) + "A" * MAX_TEXT,
    ],
)
def test_a_signature_of_another_form_is_none(text: str) -> None:
    """A version of the format that is not known here is refused, not guessed at."""
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        parse_signature(text)


def test_a_public_key_is_read_in_three_forms() -> None:
    """PEM as openssl writes it, OpenSSH's line, and the one line that commands print."""
    public = KEY.public
    ssh = ed25519.Ed25519PublicKey.from_public_bytes(public.raw).public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    assert {
        parse_public_key(form) for form in (public.to_pem(), ssh, public.text.encode(), b"\n" + public.to_pem())
    } == {public}
    assert public.fingerprint.startswith(public.ident)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"AAAA",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"ssh-ed25519 AAAA",
        KEY.to_pem(),
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "ключ".encode(),
    ],
)
def test_other_bytes_are_no_public_key(data: bytes) -> None:
    """A private key and keys of another kind included."""
    with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
        parse_public_key(data)


def test_a_private_key_survives_its_file_and_shows_nowhere() -> None:
    """Its representation holds none of its bytes; an encrypted or foreign one is refused."""
    again = SigningKey.from_pem(KEY.to_pem())
    assert again.public == KEY.public == PublicKey(KEY.public.raw)
    assert repr(again) == "SigningKey()"
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    foreign = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data in (locked, foreign, KEY.public.to_pem(), b"text"):
        with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
            SigningKey.from_pem(data)
