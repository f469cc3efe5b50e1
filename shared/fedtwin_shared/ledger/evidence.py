"""What travels beside an update: proof that the hospital charged for it, in a ledger that enough witnesses have seen.

Design note: the reservation says what was charged, the seal binds it to the very answer, and the cosigned checkpoint
says that both stand in the one history that the witnesses know. Whoever adds up updates that come with it can later be
shown, by any auditor, to have added up nothing that no ledger holds. What verifies is pure: no clock, disk, network.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import Reserve, Seal, TaskKey
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.merkle import HASH_BYTES, MAX_PROOF_HASHES, hash_leaf, verify_inclusion
from fedtwin_shared.ledger.note import Checkpoint, VerifierKey, parse_checkpoint, parse_note, verify_checkpoint
from fedtwin_shared.ledger.renyi import price_uses
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.signing import canonical_json, parse_canonical

MAX_EVIDENCE_BYTES: Final = 3 * 1024 * 1024  # a note and two entries of at most 1 MiB each; prevents DoS


class Fault(StrEnum):
    """Why evidence does not hold. Names are only ever added."""

    MISSING = "evidence-missing"
    FORM = "evidence-form"
    CHECKPOINT = "evidence-checkpoint"
    COSIGNATURES = "evidence-cosignatures"
    RESERVE = "evidence-reserve"
    SEAL = "evidence-seal"
    INCLUSION = "evidence-inclusion"


class EvidenceError(VerificationError):
    """An update without evidence that holds; `field` is the name of the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvenEntry:
    """An entry's bytes, its place in the log, and the proof that it is there (RFC 6962 §2.1.1)."""

    entry: bytes
    position: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The reservation and the seal of one answer, and the cosigned checkpoint that holds both."""

    note: bytes
    reserve: ProvenEntry
    seal: ProvenEntry

    def encode(self) -> bytes:
        """Return the canonical JSON that travels."""
        document = {"format": 1, "note": self.note.decode()}
        return canonical_json(document | {"reserve": _describe(self.reserve), "seal": _describe(self.seal)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an answer's ledger must hold. uses: what its task runs. plan, output: digests of the two envelopes."""

    task: TaskKey
    uses: tuple[Use, ...]
    plan: str
    output: str


def prove_answer(log: LogReader, task: str, note: bytes) -> Evidence:
    """Return the evidence that a log holds the reservation and the seal of `task` under the checkpoint `note`.

    Raises `LedgerError` where it does not.
    """
    size = parse_checkpoint(parse_note(note).text).size
    reserve, seal = (_prove(log, task, kind, size) for kind in (Reserve.TYPE, Seal.TYPE))
    return Evidence(note=note, reserve=reserve, seal=seal)


def _prove(log: LogReader, task: str, kind: str, size: int) -> ProvenEntry:
    position = log.find(task, kind)
    if position is None or not position < size:
        raise LedgerError(field=f"{kind} {task}", expected="an entry under the checkpoint", found="none")
    (entry,) = log.entries(position, position + 1)
    return ProvenEntry(entry=entry, position=position, proof=log.prove_inclusion(position, size))


def parse_evidence(data: bytes) -> Evidence:
    """Return the evidence in `data`. Raises `EvidenceError` unless it is exactly what `Evidence.encode` writes."""
    if not data:
        raise EvidenceError(
            field=Fault.MISSING, expected="the reservation of this update in a cosigned ledger", found="none"
        )
    malformed = EvidenceError(field=Fault.FORM, expected="a note and two proven entries", found="another form")
    if len(data) > MAX_EVIDENCE_BYTES:
        raise malformed
    try:
        document = parse_canonical(data)
    except VerificationError as err:
        raise malformed from err
    match document:
        case {"format": 1, "note": str(note), "reserve": dict(reserve), "seal": dict(seal), **rest} if not rest:
            try:
                return Evidence(note=note.encode(), reserve=_parse(reserve), seal=_parse(seal))
            except ValueError as err:
                raise malformed from err
    raise malformed


def verify_evidence(
    data: bytes, expected: Expected, *, log: VerifierKey, witnesses: Sequence[VerifierKey], required: int
) -> Checkpoint:
    """Return the checkpoint of `log` under which `data` proves what is expected of an answer.

    Raises `EvidenceError` unless
      (1) there is evidence, in its one form;
      (2) the log itself signed the checkpoint under its own name;
      (3) at least `required` of the witnesses cosigned it;
      (4) the reservation is of this task and of exactly these uses, at their price;
          whether it charges every block of its part only the whole ledger tells: `study_comparison.compare_studies`;
      (5) the seal is of this task, plan and answer;
      (6) both are in the tree of the checkpoint, the reservation first.
    """
    # (1)
    evidence = parse_evidence(data)
    # (2)
    try:
        note = parse_note(evidence.note)
        checkpoint = verify_checkpoint(note, log)
    except FedtwinError as err:
        raise EvidenceError(field=Fault.CHECKPOINT, expected=err.expected, found=err.found) from err
    # (3)
    try:
        verify_cosignatures(note, witnesses, required=required)
    except FedtwinError as err:
        raise EvidenceError(field=Fault.COSIGNATURES, expected=err.expected, found=err.found) from err
    # (4)
    _check_reserve(evidence.reserve.entry, expected)
    # (5)
    _check_seal(evidence.seal.entry, expected)
    # (6)
    if not evidence.reserve.position < evidence.seal.position:
        raise EvidenceError(field=Fault.INCLUSION, expected="the reservation before the seal", found="another order")
    for proven in (evidence.reserve, evidence.seal):
        try:
            verify_inclusion(
                hash_leaf(proven.entry),
                index=proven.position,
                size=checkpoint.size,
                proof=proven.proof,
                root=checkpoint.root,
            )
        except VerificationError as err:
            raise EvidenceError(field=Fault.INCLUSION, expected=err.expected, found=err.found) from err
    return checkpoint


def _check_reserve(data: bytes, expected: Expected) -> None:
    wrong = EvidenceError(field=Fault.RESERVE, expected="the reservation of this task", found="another entry")
    try:
        reserve = parse_entry(data)
    except FedtwinError as err:
        raise wrong from err
    if not isinstance(reserve, Reserve) or reserve.task != str(expected.task):
        raise wrong
    if reserve.uses != expected.uses:
        raise EvidenceError(field=Fault.RESERVE, expected="what this task runs", found="other mechanisms or counts")
    # The filter's order is in the ledger's policy, which an auditor sees; here the price must be that of some order.
    price = price_uses(expected.uses)
    if price is None or reserve.price not in price:
        raise EvidenceError(field=Fault.RESERVE, expected="the price of what this task runs", found="another")


def _check_seal(data: bytes, expected: Expected) -> None:
    wrong = EvidenceError(field=Fault.SEAL, expected="the seal of this task", found="another entry")
    try:
        seal = parse_entry(data)
    except FedtwinError as err:
        raise wrong from err
    if not isinstance(seal, Seal) or seal.task != str(expected.task):
        raise wrong
    if (seal.plan, seal.output) != (expected.plan, expected.output):
        raise EvidenceError(field=Fault.SEAL, expected="this plan and this answer", found="another")


def _describe(proven: ProvenEntry) -> dict[str, object]:
    proof = [base64.b64encode(value).decode() for value in proven.proof]
    return {"entry": proven.entry.decode(), "position": proven.position, "proof": proof}


def _parse(document: dict[str, object]) -> ProvenEntry:
    match document:
        case {"entry": str(entry), "position": int(position), "proof": list(proof)}:
            values = tuple(base64.b64decode(str(line), validate=True) for line in proof)
            parsed = ProvenEntry(entry=entry.encode(), position=position, proof=values)
            if (
                type(position) is int
                and position >= 0
                and len(values) <= MAX_PROOF_HASHES
                and all(len(value) == HASH_BYTES for value in values)
                and _describe(parsed) == document
            ):
                return parsed
    raise ValueError("a proven entry has another form")
