"""What a witness answers to a log's new checkpoint, after C2SP tlog-witness: a pure function of what it knows.

Design note: a witness remembers one checkpoint for each log, the latest that it cosigned. A log that restored an old
backup, or that shows two histories, cannot extend that one, and its own signature under the attempt is the evidence.
Whoever calls `decide` keeps its answer's `latest` and `evidence` before it answers, in one transaction with the read
of `latest` that went in: `WitnessStore` does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import cosign
from fedtwin_shared.ledger.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PROOF_HASHES, verify_consistency
from fedtwin_shared.ledger.note import (
    MAX_NOTE_BYTES,
    MAX_TREE_SIZE,
    Checkpoint,
    Note,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    verify_note,
)

MAX_REQUEST_BYTES: Final = MAX_NOTE_BYTES + (MAX_PROOF_HASHES + 1) * 64  # a proof line has 45 bytes; prevents DoS
SIZE_TYPE: Final = "text/x.tlog.size"  # C2SP tlog-witness: the media type of a 409
TEXT_TYPE: Final = "text/plain; charset=utf-8"
ACCEPTED: Final = 200
MALFORMED: Final = 400
UNTRUSTED: Final = 403
UNKNOWN_LOG: Final = 404
CONFLICT: Final = 409
INCONSISTENT: Final = 422
_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCheckpoint:
    """A log's request: the tree it knows to be cosigned, the proof from there, and its new checkpoint."""

    old_size: int
    proof: tuple[bytes, ...]
    note: bytes  # signed by the log

    def encode(self) -> bytes:
        """Return the request's body (C2SP tlog-witness, "add-checkpoint")."""
        lines = [f"old {self.old_size}", *(base64.b64encode(value).decode() for value in self.proof)]
        return ("\n".join(lines) + "\n\n").encode() + self.note


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back over HTTP."""

    status: int
    body: bytes
    media_type: str = TEXT_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An answer, and what must be durable before it is given."""

    answer: Answer
    latest: Checkpoint | None = None  # the log's new latest checkpoint
    evidence: bytes | None = None  # the log's signed note that contradicts what it had signed before
    reason: str = ""  # for the operator, never for the log


def parse_request(body: bytes) -> AddCheckpoint:
    """Return the request in a body. Raises `VerificationError` unless it is what `AddCheckpoint.encode` writes."""
    malformed = VerificationError(field="add-checkpoint", expected="old size, proof and a note", found="another form")
    if len(body) > MAX_REQUEST_BYTES:
        raise VerificationError(field="add-checkpoint", expected=f"at most {MAX_REQUEST_BYTES} bytes", found="more")
    head, separator, note = body.partition(b"\n\n")
    first, *lines = head.decode("ascii", errors="replace").split("\n")
    old = _OLD.fullmatch(first)
    if not separator or old is None or len(lines) > MAX_PROOF_HASHES:
        raise malformed
    try:
        proof = tuple(base64.b64decode(line, validate=True) for line in lines)
    except ValueError as err:
        raise malformed from err
    request = AddCheckpoint(old_size=int(old[1]), proof=proof, note=note)
    if any(len(value) != HASH_BYTES for value in proof) or request.encode() != body:
        raise malformed
    return request


def read_origin(body: bytes) -> str:
    """Return the origin that a request names, without verifying anything. Raises `VerificationError` if malformed."""
    return parse_checkpoint(parse_note(parse_request(body).note).text).origin


def decide(
    body: bytes,
    *,
    logs: Mapping[str, VerifierKey],
    latest: Checkpoint | None,
    name: str,
    key: Ed25519PrivateKey,
    now: int,
) -> Decision:
    """Return what the witness `name` answers at `now` (seconds), given the latest checkpoint it cosigned of this log.

    - unknown log 404; no valid signature of the log 403; malformed, or an old size above the new one, 400
    - an old size that is not the latest: 409 with the latest size; it is evidence where the tree shrank
    - the same size with another root: 409, and evidence
    - a proof that does not verify: 422, and evidence
    - otherwise the cosignature, and the new latest checkpoint
    """
    try:
        request = parse_request(body)
        note = parse_note(request.note)
        offered = parse_checkpoint(note.text)
    except VerificationError:
        return _refuse(MALFORMED, "malformed")
    log = logs.get(offered.origin)
    if log is None:
        return _refuse(UNKNOWN_LOG, "unknown log")
    if not _is_signed(note, log):
        return _refuse(UNTRUSTED, "not signed by the log")
    if request.old_size > offered.size or offered.size > MAX_TREE_SIZE:
        return _refuse(MALFORMED, "the old size is above the new one")
    known = latest or Checkpoint(origin=offered.origin, size=0, root=EMPTY_ROOT)
    if request.old_size != known.size:
        shrank = offered.size < known.size
        return _conflict(known, evidence=request.note if shrank else None, reason="another size was cosigned last")
    if offered.size == known.size and offered.root != known.root:
        return _conflict(known, evidence=request.note, reason="two roots of one size")
    try:
        verify_consistency(
            old=known.size, old_root=known.root, size=offered.size, root=offered.root, proof=request.proof
        )
    except VerificationError:
        return _refuse(INCONSISTENT, "inconsistent with what was cosigned", evidence=request.note)
    line = str(cosign(note.text, name=name, key=key, timestamp=now))
    return Decision(answer=Answer(status=ACCEPTED, body=line.encode()), latest=offered)


def _is_signed(note: Note, log: VerifierKey) -> bool:
    try:
        return log in verify_note(note, [log])
    except VerificationError:
        return False


def _refuse(status: int, reason: str, *, evidence: bytes | None = None) -> Decision:
    return Decision(answer=Answer(status=status, body=f"{reason}\n".encode()), evidence=evidence, reason=reason)


def _conflict(known: Checkpoint, *, evidence: bytes | None, reason: str) -> Decision:
    answer = Answer(status=CONFLICT, body=f"{known.size}\n".encode(), media_type=SIZE_TYPE)
    return Decision(answer=answer, evidence=evidence, reason=reason)
