"""Canonical JSON, digests, Ed25519 keys and DSSE envelopes: everything that is signed is signed here.

Design note: canonical JSON forbids floats (a number that must be exact is an integer or a decimal string) and
non-ASCII keys, so that `json.dumps(sort_keys=True)` gives exactly RFC 8785 §3.2.
An envelope is accepted only in the one byte form that `sign_envelope` writes: a second form of the same
statement would have a second digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtwin_shared.durable import create_file
from fedtwin_shared.errors import ConfigurationError, VerificationError

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]

KEY_PREFIX = "ed25519:"
MAX_ENVELOPE_BYTES = 4 * 1024 * 1024  # a study of 1,000 sites and 10,000 features is under 2 MB; prevents DoS


def canonical_json(value: object) -> bytes:
    """Return the RFC 8785 form of `value`.

    Raises `TypeError` for floats, non-string or non-ASCII keys and anything that is not JSON.

    >>> canonical_json({"b": [1, "é"], "a": None})
    b'{"a":null,"b":[1,"\\xc3\\xa9"]}'
    """
    _refuse_inexact(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _refuse_inexact(value: object) -> None:
    if value is None or isinstance(value, bool | str):
        return
    if isinstance(value, int):
        if not -(2**53) < value < 2**53:  # RFC 8785 §3.2.2.3: JSON numbers are IEEE 754 doubles
            raise TypeError("canonical JSON holds no integer beyond 2^53: write a decimal string")
        return
    if isinstance(value, list | tuple):
        for item in value:
            _refuse_inexact(item)
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise TypeError("canonical JSON needs ASCII string keys")
            _refuse_inexact(item)
        return
    raise TypeError(f"canonical JSON holds no {type(value).__name__}: write a decimal string")


def parse_canonical(data: bytes) -> object:
    """Return the value of which `data` is the canonical JSON. Raises `VerificationError` for any other bytes."""
    try:
        value: object = json.loads(data)
        if canonical_json(value) == data:
            return value
    except (ValueError, TypeError, RecursionError) as err:
        raise VerificationError(expected="canonical JSON", found="something else") from err
    raise VerificationError(expected="canonical JSON", found="another form of it")


def digest(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def format_public_key(key: Ed25519PublicKey) -> str:
    """Return `ed25519:` followed by the base64 of the raw 32 bytes (RFC 8032 §5.1.5)."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return KEY_PREFIX + base64.b64encode(raw).decode()


def parse_public_key(text: str) -> Ed25519PublicKey:
    """Return the key that `format_public_key` wrote.

    Raises `VerificationError` for any other text.
    """
    expected = "ed25519: and the base64 of 32 bytes"
    if not text.startswith(KEY_PREFIX):
        raise VerificationError(field="public_key", expected=expected, found=f"{text[:16]!r}…")
    try:
        raw = base64.b64decode(text[len(KEY_PREFIX) :], validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError) as err:
        raise VerificationError(field="public_key", expected=expected, found=f"{text[:16]!r}…") from err
    if format_public_key(key) != text:
        raise VerificationError(field="public_key", expected="canonical base64", found="another form of it")
    return key


def create_signing_key(path: Path) -> Ed25519PrivateKey:
    """Write a new private key to `path`, readable by its owner only, and return it.

    - the file is created with mode 0600 before the first byte of the key is written
    - an existing key is never overwritten (`FileExistsError`)
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    create_file(path, pem)
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises `ConfigurationError` when the file is missing, is not an Ed25519 key, or others may read it.
    """
    try:
        mode = path.stat().st_mode & 0o777
        pem = path.read_bytes()
    except OSError as err:
        raise ConfigurationError(file=path, expected="a private key", found=err.strerror or "no file") from err
    if mode & 0o077:
        raise ConfigurationError(file=path, field="mode", expected="0600", found=f"{mode:04o}")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as err:
        raise ConfigurationError(file=path, expected="an Ed25519 key in PEM", found="something else") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(file=path, expected="an Ed25519 key", found=type(key).__name__)
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEnvelope:
    """A payload whose signature was checked, and the public key that signed it."""

    payload: bytes
    payload_type: str
    signer: str


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that a signature of an envelope covers."""
    # DSSE v1.0 protocol.md, "Signature Definition": PAE(type, body)
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload: bytes, *, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """Return the DSSE v1.0 envelope of `payload`, signed with `key`, in canonical JSON."""
    signature = key.sign(pre_authentication_encoding(payload_type, payload))
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [
                {
                    "keyid": format_public_key(key.public_key()),
                    "sig": base64.b64encode(signature).decode(),
                }
            ],
        }
    )


def verify_envelope(data: bytes, *, payload_type: str, trusted: Mapping[str, str]) -> VerifiedEnvelope:
    """Return the payload of a DSSE envelope.

    `trusted` maps public keys to the names of those who hold them. Raises `VerificationError` unless:
      (0) the envelope is at most `MAX_ENVELOPE_BYTES` long;
      (1) it is canonical JSON of exactly the DSSE fields with exactly one signature;
      (2) its payload type is the expected one;
      (3) its signer is trusted;
      (4) the signature verifies.
    """
    # (0)
    if len(data) > MAX_ENVELOPE_BYTES:
        raise VerificationError(expected=f"at most {MAX_ENVELOPE_BYTES} bytes", found=f"{len(data)}")
    # (1)
    payload, kind, signer, signature = _parse_envelope(data)
    # (2)
    if kind != payload_type:
        raise VerificationError(field="payloadType", expected=payload_type, found=repr(kind[:80]))
    # (3)
    if signer not in trusted:
        raise VerificationError(field="signatures", expected="a trusted signer", found=f"{signer[:24]}…")
    # (4)
    try:
        parse_public_key(signer).verify(signature, pre_authentication_encoding(kind, payload))
    except InvalidSignature as err:
        raise VerificationError(field="signatures", expected="a valid signature", found="an invalid one") from err
    return VerifiedEnvelope(payload=payload, payload_type=kind, signer=signer)


def _parse_envelope(data: bytes) -> tuple[bytes, str, str, bytes]:
    malformed = VerificationError(field="envelope", expected="a canonical DSSE envelope", found="another form")
    try:
        document = json.loads(data)
        if canonical_json(document) != data or set(document) != {"payload", "payloadType", "signatures"}:
            raise malformed
        (entry,) = document["signatures"]
        if set(entry) != {"keyid", "sig"} or not isinstance(document["payloadType"], str):
            raise malformed
        payload = base64.b64decode(document["payload"], validate=True)
        signature = base64.b64decode(entry["sig"], validate=True)
        again = (base64.b64encode(payload).decode(), base64.b64encode(signature).decode())
        if again != (document["payload"], entry["sig"]) or not isinstance(entry["keyid"], str):
            raise malformed
        return payload, document["payloadType"], entry["keyid"], signature
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise malformed from err
