"""From ledgers on disk to the auditor's bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger.bundle import AuditBundle, LogExport, write_audit_bundle
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note
from fedtwin_shared.ledger.store import LogReader


def export_log(path: Path) -> LogExport:
    """Return a ledger as of its last checkpoint. Reads beside its writer.

    Raises `LedgerError` where there is no ledger or it has no checkpoint.
    """
    with LogReader(path) as log:
        note = log.latest_note()
        if note is None:
            raise LedgerError(file=path, expected="a cosigned checkpoint", found="none")
        size = parse_checkpoint(parse_note(note).text).size
        return LogExport(note=note, entries=tuple(log.entries(0, size)))


def export_bundle(ledgers: Mapping[str, Path], documents: Sequence[Path] = ()) -> bytes:
    """Return the bundle of these ledgers, by hospital, and of documents that their entries name by digest.

    Raises `LedgerError` for a ledger, `ConfigurationError` for a document or a name that cannot travel.
    """
    contents: dict[str, bytes] = {}
    for file in documents:
        try:
            content = file.read_bytes()
        except OSError as err:
            raise ConfigurationError(file=file, expected="a readable file", found=err.strerror or "none") from err
        contents[hashlib.sha256(content).hexdigest()] = content
    logs = {name: export_log(path) for name, path in ledgers.items()}
    try:
        return write_audit_bundle(AuditBundle(logs=logs, documents=contents))
    except ValueError as err:
        raise ConfigurationError(field="bundle", expected="plain names and at most 1 GiB", found=str(err)) from err
