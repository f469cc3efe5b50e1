"""One document under many signatures: a study that the coordinator and every site signed, a change of a key.

Design note: DSSE v1.0 lets an envelope carry several signatures over the same bytes. Here it has one form only:
canonical JSON, signatures in the order of their key ids, one for each key, so that the same document with the same
signers is the same bytes whoever collected them. With one signature it is exactly what `sign_envelope` writes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.signing import (
    MAX_ENVELOPE_BYTES,
    canonical_json,
    format_public_key,
    parse_public_key,
    pre_authentication_encoding,
)

MOST_SIGNATURES: Final = 1024  # of one envelope; prevents DoS of whoever verifies


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """A well-formed envelope; its signatures by public key. Nothing of it is verified but by `verify`."""

    payload: bytes
    payload_type: str
    signatures: Mapping[str, bytes]

    def verify(self, signer: str) -> None:
        """Raise `VerificationError` unless the holder of this public key signed."""
        signature = self.signatures.get(signer)
        if signature is None:
            others = f"{min(self.signatures)[:24]}…"
            raise VerificationError(field="signatures", expected="a trusted signer", found=others)
        try:
            parse_public_key(signer).verify(signature, pre_authentication_encoding(self.payload_type, self.payload))
        except InvalidSignature as err:
            raise VerificationError(field="signatures", expected="a valid signature", found="an invalid one") from err

    def verify_all(self, names: Mapping[str, str]) -> frozenset[str]:
        """Return the names of everybody who signed. `names` maps public keys to those who hold them.

        - Raises `VerificationError` where any signature is invalid or of somebody else
        """
        for signer in self.signatures:
            if signer not in names:
                raise VerificationError(field="signatures", expected="a trusted signer", found=f"{signer[:24]}…")
            self.verify(signer)
        return frozenset(names[signer] for signer in self.signatures)

    def envelope(self) -> bytes:
        """Return the one byte form."""
        return canonical_json(
            {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": [
                    {"keyid": signer, "sig": base64.b64encode(signature).decode()}
                    for signer, signature in sorted(self.signatures.items())
                ],
            }
        )


def read_document(envelope: bytes, *, payload_type: str) -> SignedDocument:
    """Return a well-formed envelope. Raises `VerificationError` for any other form, payload type or size."""
    malformed = VerificationError(field="envelope", expected="a canonical DSSE envelope", found="another form")
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise VerificationError(expected=f"at most {MAX_ENVELOPE_BYTES} bytes", found=f"{len(envelope)}")
    try:
        document = json.loads(envelope)
        found = SignedDocument(
            payload=base64.b64decode(document["payload"], validate=True),
            payload_type=document["payloadType"],
            signatures={one["keyid"]: base64.b64decode(one["sig"], validate=True) for one in document["signatures"]},
        )
        # One form: other fields, another order, a key that signs twice and odd base64 all give other bytes.
        texts = all(isinstance(text, str) for text in (found.payload_type, *found.signatures))
        if not (texts and 1 <= len(found.signatures) <= MOST_SIGNATURES and found.envelope() == envelope):
            raise malformed
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        raise malformed from err
    if found.payload_type != payload_type:
        raise VerificationError(field="payloadType", expected=payload_type, found=repr(found.payload_type[:80]))
    return found


def sign_document(document: SignedDocument, key: Ed25519PrivateKey) -> SignedDocument:
    """Return the document with one more signature, or with the same one again (Ed25519 is deterministic)."""
    signature = key.sign(pre_authentication_encoding(document.payload_type, document.payload))
    own = {format_public_key(key.public_key()): signature}
    return SignedDocument(
        payload=document.payload,
        payload_type=document.payload_type,
        signatures={**document.signatures, **own},
    )


def merge_signatures(documents: Iterable[SignedDocument]) -> SignedDocument:
    """Return one document with the signatures of all. Raises `VerificationError` where they are not the same document.

    - the order in which signatures came does not matter
    """
    first, *others = documents
    signatures = dict(first.signatures)
    for other in others:
        if (other.payload, other.payload_type) != (first.payload, first.payload_type):
            raise VerificationError(field="payload", expected="the same document", found="another")
        for signer, signature in other.signatures.items():
            if signatures.setdefault(signer, signature) != signature:
                raise VerificationError(field="signatures", expected="one signature of each key", found="two")
    return SignedDocument(payload=first.payload, payload_type=first.payload_type, signatures=signatures)
