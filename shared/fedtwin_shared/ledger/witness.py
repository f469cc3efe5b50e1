"""What a witness answers to a log's new checkpoint, after C2SP tlog-witness: a pure function of what it knows.

Design note: a witness remembers what it cosigned of each log. A log that restored an old backup, or that shows two
histories, cannot extend the latest of it. Anybody can post a log's old notes, so an old note is evidence only where it
contradicts what was cosigned at that very size; the log's own signature under it is then the proof.
Whoever calls `decide` keeps its answer's `latest` and `evidence` before it answers, in one transaction with the read
of `latest` that went in: `WitnessStore` does.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
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
    format_note,
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
TWO_ROOTS: Final = "two roots of one size"  # proves by itself that the log forked
NOT_EXTENDED: Final = "inconsistent with what was cosigned"  # the proof that came with it does not hold
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
    evidence: bytes | None = None  # the log's note, with its own signature only
    against: int | None = None  # size of the cosigned tree that the evidence speaks against
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


def own_note(body: bytes, log: VerifierKey) -> bytes:
    """Return the note in a request with the log's own signature only: one form, whoever else signed beside it."""
    note = parse_note(parse_request(body).note)
    return format_note(note.text, [verify_note(note, [log])[log]])


def decide(
    body: bytes,
    *,
    logs: Mapping[str, VerifierKey],
    latest: Checkpoint | None,
    cosigned_root: Callable[[int], bytes | None],
    name: str,
    key: Ed25519PrivateKey,
    now: int,
) -> Decision:
    """Return what the witness `name` answers at `now` (seconds), given what it cosigned of this log.

    latest: the largest; cosigned_root: the root of the tree of a smaller size, None where it cosigned none.

    - unknown log 404; no valid signature of the log 403; malformed, or an old size above the new one, 400
    - an old size that is not the latest: 409 with the latest size
    - a size that was cosigned with another root: 409, and evidence; a replayed honest note is none
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
    own = own_note(body, log)  # lines of other signers would make copies of one note distinct
    seen = known.root if offered.size == known.size else cosigned_root(offered.size)
    if seen is not None and seen != offered.root:
        answer = _conflict(known)
        return Decision(answer=answer, evidence=own, against=offered.size, reason=TWO_ROOTS)
    if request.old_size != known.size:
        return Decision(answer=_conflict(known), reason="another size was cosigned last")
    try:
        verify_consistency(
            old=known.size, old_root=known.root, size=offered.size, root=offered.root, proof=request.proof
        )
    except VerificationError:
        refused = _refuse(INCONSISTENT, NOT_EXTENDED)
        return Decision(answer=refused.answer, evidence=own, against=known.size, reason=NOT_EXTENDED)
    line = str(cosign(note.text, name=name, key=key, timestamp=now))
    return Decision(answer=Answer(status=ACCEPTED, body=line.encode()), latest=offered)


def _is_signed(note: Note, log: VerifierKey) -> bool:
    try:
        return log in verify_note(note, [log])
    except VerificationError:
        return False


def _refuse(status: int, reason: str) -> Decision:
    return Decision(answer=Answer(status=status, body=f"{reason}\n".encode()), reason=reason)


def _conflict(known: Checkpoint) -> Answer:
    return Answer(status=CONFLICT, body=f"{known.size}\n".encode(), media_type=SIZE_TYPE)
