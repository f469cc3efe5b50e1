"""What an auditor's machine checks of a bundle, offline and alone, and the numbered list of what failed.

Design note: a bundle is evidence of a hospital that may be lying. Everything in it is recomputed from the entries and
compared with what enough pinned witnesses signed; nothing is believed because the bundle says so. `verify_bundle`
returns what it found instead of raising: that a bundle does not hold is an answer, and all reasons are given at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from fedtwin_shared.errors import ConfigurationError, FedtwinError, VerificationError
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.bundle import MAX_BUNDLE_BYTES, AuditBundle, LogExport, read_audit_bundle
from fedtwin_shared.ledger.cosignature import Cosignature, verify_cosignatures
from fedtwin_shared.ledger.merkle import compute_root
from fedtwin_shared.ledger.note import Checkpoint, VerifierKey, parse_checkpoint, parse_note, verify_checkpoint
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.ledger.study_comparison import compare_studies


class Replayed(Protocol):
    """What entries add up to, of which the ledger's state is part."""

    @property
    def ledger(self) -> LedgerState:
        """The state after all entries."""


State = TypeVar("State", bound=Replayed)
_DIGEST: Final = re.compile(rb'"([0-9a-f]{64})"')  # a whole value of an entry
Replay = Callable[[Sequence[bytes]], State]  # entries in order -> what they add up to; raises where they do not


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check that failed: on which log, and why."""

    check: str
    log: str  # empty where it concerns the whole bundle
    reason: str

    def __str__(self) -> str:
        """Return one line."""
        return ": ".join(part for part in (self.log, self.check, self.reason) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog(Generic[State]):
    """A hospital's log that holds."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]
    state: State  # what its entries add up to


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle(Generic[State]):
    """A bundle in which everything holds: one log for each pinned name, and documents that entries name by digest."""

    logs: dict[str, VerifiedLog[State]]
    documents: Mapping[str, bytes]


def read_bundle_file(path: Path) -> bytes:
    """Return a file's bytes, at most one more than any bundle has. Raises `ConfigurationError` if unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as err:
        raise ConfigurationError(file=path, expected="a readable file", found=err.strerror or "none") from err


def verify_bundle(
    data: bytes, *, pinned: PinnedKeys, replay: Replay[State]
) -> VerifiedBundle[State] | tuple[Finding, ...]:
    """Return the verified bundle, or all that failed.

    (1) bundle: the archive has its one form and holds the files of a bundle, documents under their digests
    (2) logs: exactly the pinned logs are there
    and for each log
    (3) checkpoint: its note is signed by the log's pinned key, and holds no signature but of pinned keys, once each
    (4) cosignatures: enough of the pinned witnesses cosigned it
    (5) size: there are as many entries as it says
    (6) root: the entries' root is the one that it says
    (7) history: the entries replay, every rule of the ledger kept and every total recomputed
    (8) study: what was enrolled and charged is what the signed study says, where the bundle holds it; where it does
        not, nothing is compared, which `find_uncompared` tells
    and
    (9) documents: each one is named by an entry
    """
    # (1)
    try:
        bundle = read_audit_bundle(data)
    except FedtwinError as err:
        return (Finding(check="bundle", log="", reason=str(err)),)
    findings: list[Finding] = []
    # (2)
    keys = pinned.log_keys
    if bundle.logs.keys() != keys.keys():
        missing, strange = sorted(keys.keys() - bundle.logs.keys()), sorted(bundle.logs.keys() - keys.keys())
        reason = f"expected the pinned logs, found {missing or 'none'} missing and {strange or 'none'} unknown"
        findings.append(Finding(check="logs", log="", reason=reason))
    logs: dict[str, VerifiedLog[State]] = {}
    for name in sorted(bundle.logs.keys() & keys.keys()):
        result = _verify_log(name, bundle.logs[name], keys[name], pinned, replay, bundle.documents)
        if isinstance(result, VerifiedLog):
            logs[name] = result
        else:
            findings += result
    # (9)
    findings += [
        Finding(check="documents", log="", reason=f"expected an entry that names {digest}, found none")
        for digest in _unnamed_documents(bundle)
    ]
    return tuple(findings) if findings else VerifiedBundle(logs=logs, documents=bundle.documents)


def _verify_log(
    name: str,
    export: LogExport,
    log: VerifierKey,
    pinned: PinnedKeys,
    replay: Replay[State],
    documents: Mapping[str, bytes],
) -> VerifiedLog[State] | list[Finding]:
    findings: list[Finding] = []

    def fail(check: str, reason: object) -> None:
        findings.append(Finding(check=check, log=name, reason=str(reason)))

    checkpoint, cosignatures = None, tuple[Cosignature, ...]()
    # (3)
    try:
        note = parse_note(export.note)
        checkpoint = parse_checkpoint(note.text)
        verify_checkpoint(note, log)
        signers = [(signature.name, signature.key_id) for signature in note.signatures]
        known = [(key.name, key.key_id) for key in (log, *pinned.witness_keys)]
        if signers != [signer for signer in known if signer in signers]:
            # Whoever adds a line could else carry anything in it past this verifier.
            raise VerificationError(field="note", expected="pinned signatures in pinned order", found="others")
    except FedtwinError as err:
        fail("checkpoint", err)
    # (4)
    if checkpoint is not None:
        try:
            cosignatures = verify_cosignatures(note, pinned.witness_keys, required=pinned.required)
        except FedtwinError as err:
            fail("cosignatures", err)
        # (5)
        if len(export.entries) != checkpoint.size:
            fail("size", f"expected {checkpoint.size} entries, found {len(export.entries)}")
        # (6)
        elif compute_root(export.entries) != checkpoint.root:
            fail("root", "expected the root that was signed, found another")
    # (7)
    try:
        state = replay(export.entries)
    except FedtwinError as err:
        fail("history", err)
    except Exception as err:  # the entries are a stranger's: whatever they break in replay is a refusal of them
        fail("history", f"expected entries that replay, found {type(err).__name__}")
    # (8)
    else:
        for reason in compare_studies(state.ledger, documents):
            fail("study", reason)
    if checkpoint is None or findings:
        return findings
    return VerifiedLog(checkpoint=checkpoint, cosignatures=cosignatures, state=state)


def _unnamed_documents(bundle: AuditBundle) -> list[str]:
    # One pass, not one for each document: both are a stranger's, and there may be many of both.
    logs = bundle.logs.values() if bundle.documents else ()
    named = {found for export in logs for entry in export.entries for found in _DIGEST.findall(entry)}
    return [digest for digest in bundle.documents if digest.encode() not in named]
