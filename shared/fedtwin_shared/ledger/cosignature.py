"""What a witness states about a checkpoint, after C2SP tlog-cosignature v1: timestamped Ed25519, key type 0x04.

Design note: the signed message does not hold the witness's name, so one public key under two names would count
twice; `check_witnesses` refuses that where keys are pinned.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.note import (
    COSIGNATURE,
    MAX_TIMESTAMP,
    Note,
    NoteSignature,
    VerifierKey,
    cosigned_text,
    make_verifier_key,
    verify_note,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosignature:
    """A witness, and when it last saw the log grow consistently to this checkpoint."""

    witness: str
    timestamp: int  # seconds since the epoch


def cosign(text: str, *, name: str, key: Ed25519PrivateKey, timestamp: int) -> NoteSignature:
    """Return a witness's cosignature of a checkpoint's text at that time (C2SP tlog-cosignature, "Format")."""
    if not 0 <= timestamp <= MAX_TIMESTAMP:
        raise ValueError("a timestamp is seconds since the epoch, below 2^63")
    signed = key.sign(cosigned_text(text, timestamp=timestamp).encode())
    witness = make_verifier_key(name, key, algorithm=COSIGNATURE)
    return NoteSignature(name=name, key_id=witness.key_id, signature=struct.pack(">Q", timestamp) + signed)


def quorum(witnesses: int, *, faulty: int) -> int:
    """Return how many of N witnesses must cosign so that two quorums share an honest one: ⌊(N+f)/2⌋+1.

    Two sets of w among N share at least 2w - N witnesses, which must exceed f (Malkhi and Reiter, Byzantine Quorum
    Systems, 1998, §4, with w = ⌈(N+f+1)/2⌉). Raises `ConfigurationError` where even all N are too few.

    >>> quorum(5, faulty=1)
    4
    """
    if not 0 <= faulty < witnesses:
        raise ConfigurationError(field="witnesses", expected=f"more than {faulty} of them", found=str(witnesses))
    return (witnesses + faulty) // 2 + 1


def check_witnesses(witnesses: Sequence[VerifierKey]) -> None:
    """Raise `ConfigurationError` unless all are cosigning keys of distinct names and distinct public keys."""
    if any(key.algorithm != COSIGNATURE for key in witnesses):
        raise ConfigurationError(field="witnesses", expected="cosigning keys (type 0x04)", found="another type")
    if len({key.public for key in witnesses}) != len(witnesses) or len({key.name for key in witnesses}) != len(
        witnesses
    ):
        raise ConfigurationError(field="witnesses", expected="distinct names and keys", found="one of them twice")


def verify_cosignatures(note: Note, witnesses: Sequence[VerifierKey], *, required: int) -> tuple[Cosignature, ...]:
    """Return who cosigned the note and when, in the order of `witnesses`.

    Raises `VerificationError` where fewer than `required` of the given witnesses did, or one of them signed wrongly.
    """
    check_witnesses(witnesses)
    signed = verify_note(note, witnesses)
    if len(signed) < required:
        raise VerificationError(
            field="cosignatures", expected=f"at least {required} of {len(witnesses)} witnesses", found=str(len(signed))
        )
    return tuple(
        Cosignature(witness=key.name, timestamp=struct.unpack(">Q", signed[key].signature[:8])[0])
        for key in witnesses
        if key in signed
    )
