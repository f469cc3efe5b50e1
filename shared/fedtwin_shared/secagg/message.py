"""One message of the protocol: a signed header and a body, as bytes.

    4 bytes, big-endian: the header's length ‖ DSSE envelope of the header ‖ body

The header names the phase, the sender, the recipient (empty: everybody), the context (the set-up's digest in rounds 0
and 1, the step's binding after that) and the SHA-256 of the body. Vectors and shares are the body, so that a masked
vector costs its own 8 bytes a coordinate and half a kilobyte.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.secagg.terms import Sign, Terms
from fedtwin_shared.signing import canonical_json, digest, parse_canonical, verify_envelope

MESSAGE_TYPE: Final = "application/vnd.fedtwin.secure-aggregation+json"
MAXIMUM_HEADER_BYTES: Final = 4096  # names and digests take less than 1,000


class Phase(StrEnum):
    """The rounds of Bonawitz et al., figure 4, by the messages that sites send in them."""

    KEYS = "keys"  # round 0
    SHARES = "shares"  # round 1
    READY = "ready"  # the end of the set-up
    MASKED = "masked"  # round 2
    AGREEMENT = "agreement"  # round 3
    UNMASKING = "unmasking"  # round 4


class ProtocolError(FedtwinError):
    """A message that the protocol refuses. Whoever raises this has changed nothing.

    phase: in which it was refused. sender: whose message it was; empty when it names nobody who can be believed.
    """

    def __init__(self, *, phase: Phase, sender: str, expected: str, found: str) -> None:
        self.phase, self.sender = phase, sender
        super().__init__(field=f"{phase}: {sender or 'unknown sender'}", expected=expected, found=found)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.phase, self.sender, self.expected, self.found)


class WrongShareError(ProtocolError):
    """The sender, whose signature on it stands, revealed or dealt a share that is not what was committed to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message that was verified. sha256: of its signed header, and so of everything in it."""

    sender: str
    body: memoryview
    sha256: str


def sign_message(
    body: bytes | memoryview, *, phase: Phase, sender: str, context: str, sign: Sign, recipient: str = ""
) -> bytes:
    """Return the message that `sender` signs."""
    header = {
        "body": hashlib.sha256(body).hexdigest(),
        "context": context,
        "format": 1,
        "phase": phase.value,
        "recipient": recipient,
        "sender": sender,
    }
    envelope = sign(canonical_json(header))
    return b"".join([len(envelope).to_bytes(4, "big"), envelope, body])


def verify_message(data: bytes, *, phase: Phase, context: str, terms: Terms, recipient: str = "") -> Message:
    """Return the message that a member of `terms` signed.

    Raises `ProtocolError` unless
      (1) it has a header, signed by a member, in the one canonical form, and names that member as its sender;
      (2) it belongs to this phase, this context and this recipient;
      (3) the body has the digest that was signed.
    """
    # (1)
    length = int.from_bytes(data[:4], "big")
    if not (len(data) >= 4 + length and length <= MAXIMUM_HEADER_BYTES):
        raise ProtocolError(phase=phase, sender="", expected="a header and a body", found="other bytes")
    trusted = terms.keys
    try:
        verified = verify_envelope(data[4 : 4 + length], payload_type=MESSAGE_TYPE, trusted=trusted)
        header = parse_canonical(verified.payload)
    except VerificationError as err:
        where = f"{err.field}: " if err.field else ""
        raise ProtocolError(phase=phase, sender="", expected=f"{where}{err.expected}", found=err.found) from err
    sender = trusted[verified.signer]
    body = memoryview(data)[4 + length :]
    wanted = {"context": context, "format": 1, "phase": phase.value, "recipient": recipient, "sender": sender}
    found = dict(header) if isinstance(header, dict) else {}
    signed = found.pop("body", None)
    # (2)
    if found != wanted:
        wrong = [field for field in wanted if found.get(field) != wanted[field]]
        raise ProtocolError(
            phase=phase, sender=sender, expected="this phase, context and recipient", found=f"other {wrong}"
        )
    # (3)
    if hashlib.sha256(body).hexdigest() != signed:
        raise ProtocolError(phase=phase, sender=sender, expected="the body that was signed", found="another")
    return Message(sender=sender, body=body, sha256=digest(data[4 : 4 + length]))


def verify_each(
    messages: list[bytes], *, phase: Phase, context: str, terms: Terms, recipient: str = ""
) -> dict[str, Message]:
    """Return verified messages by sender, sorted. Raises `ProtocolError`, also when a sender appears twice."""
    found: dict[str, Message] = {}
    for data in messages:
        message = verify_message(data, phase=phase, context=context, terms=terms, recipient=recipient)
        if message.sender in found:
            raise ProtocolError(phase=phase, sender=message.sender, expected="one message", found="a second one")
        found[message.sender] = message
    return dict(sorted(found.items()))


def _rebuild(kind: type[ProtocolError], phase: Phase, sender: str, expected: str, found: str) -> ProtocolError:
    return kind(phase=phase, sender=sender, expected=expected, found=found)
