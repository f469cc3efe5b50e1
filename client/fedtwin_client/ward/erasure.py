"""One patient erased while the gateway runs, and every file looked through for what is left of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtwin_client.forgetting import forget
from fedtwin_client.ingest.control import ask
from fedtwin_client.store.block_store import KEYS_FOLDER, open_store
from fedtwin_client.store.keys import DIGEST, KEYS, SITE_PREFIX
from fedtwin_client.store.sqlite_database import DATABASE
from fedtwin_client.store.store import StoreError
from fedtwin_client.ward.premises import Ward
from fedtwin_client.ward.senders import Bed

PIECE: Final = 24  # bytes of a ciphertext that are looked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What was there before, and what is found afterwards.

    exported: readings that the patient's own export has. sealed: ciphertexts of theirs that were in the database.
    named, ciphertexts, keys: files afterwards that hold their id, a ciphertext of theirs, or their wrapped key.
    old_site_key: whether any file has the key that wrapped it. backup_opens: whether a backup from before opens
    for them with the keys of now; backup_others: patients for whom it does. old_keys_open: whether the backup's own
    copy of patients' keys opens at all.
    """

    exported: int
    sealed: int
    files: int
    named: int
    ciphertexts: int
    keys: int
    old_site_key: bool
    backup_opens: bool
    backup_others: int
    old_keys_open: bool

    @property
    def holds(self) -> bool:
        """Whether there was something, and nothing can be read any more."""
        left = self.named + self.ciphertexts + self.keys
        readable = self.old_site_key or self.backup_opens or self.old_keys_open
        return self.exported > 0 and self.sealed > 0 and left == 0 and not readable


def erase_and_look(ward: Ward, bed: Bed, *, settle: float) -> Erasure:
    """Export the bed's patient, take a backup, forget the patient, and look through every file of the node."""
    hospital, patient = ward.hospital, bed.stay.patient
    export, backup = hospital.root.parent / "export.json", hospital.root.parent / "backup"
    ask(hospital.node, {"export": patient, "output": str(export)})
    exported = sum(
        entry["resource"]["resourceType"] == "Observation" for entry in json.loads(export.read_text())["entry"]
    )
    export.unlink()  # it went to the patient
    _back_up(hospital.store, backup)
    sites = [path.read_bytes() for path in (hospital.store / KEYS_FOLDER).glob(f"{SITE_PREFIX}*")]
    before = (backup / KEYS_FOLDER / KEYS).read_bytes()
    was = _sealed(backup / DATABASE)
    forget(hospital, [patient])
    time.sleep(settle)
    _back_up(hospital.store, backup.with_name("after"))
    gone = {
        digest: sealed for digest, sealed in was.items() if digest not in _sealed(backup.with_name("after") / DATABASE)
    }
    pieces = [sealed[:PIECE] for several in gone.values() for sealed in several]
    wrapped = [before[at + DIGEST : at + DIGEST + PIECE] for digest in gone if (at := before.find(digest)) >= 0]
    shutil.rmtree(backup.with_name("after"))
    contents = {path: path.read_bytes() for path in hospital.root.rglob("*") if path.is_file() and not path.is_socket()}
    opens, others, old_keys = _open_backup(hospital.store, backup, patient)
    shutil.rmtree(backup)
    return Erasure(
        exported=exported,
        sealed=len(pieces),
        files=len(contents),
        named=sum(patient.encode() in content for content in contents.values()),
        ciphertexts=sum(any(piece in content for piece in pieces) for content in contents.values()),
        keys=sum(any(piece in content for piece in wrapped) for content in contents.values()),
        old_site_key=any(site in content for content in contents.values() for site in sites),
        backup_opens=opens,
        backup_others=others,
        old_keys_open=old_keys,
    )


def _back_up(store: Path, target: Path) -> None:
    """Copy the database, as SQLite's online backup does, and patients' keys; the site's key is in no backup."""
    (target / KEYS_FOLDER).mkdir(mode=0o700, parents=True)
    with (
        contextlib.closing(sqlite3.connect(f"file:{store / DATABASE}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(target / DATABASE)) as copy,
    ):
        live.backup(copy)
    shutil.copy(store / KEYS_FOLDER / KEYS, target / KEYS_FOLDER / KEYS)


def _sealed(database: Path) -> dict[bytes, list[bytes]]:
    """Return every patient's ciphertexts, by digest."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        found: dict[bytes, list[bytes]] = {}
        for table in ("block", "entry"):
            query = f"SELECT digest, {table}.sealed FROM {table} JOIN patient ON patient.number = {table}.patient"
            for digest, sealed in connection.execute(query):
                found.setdefault(digest, []).append(sealed)
        return found


def _open_backup(store: Path, backup: Path, patient: str) -> tuple[bool, int, bool]:
    """Return whether the backup opens for the patient with the keys of now, for how many others it does, and whether
    it opens with its own old copy of the keys."""
    old = backup / "old-keys"
    shutil.move(backup / KEYS_FOLDER, old)
    shutil.copytree(store / KEYS_FOLDER, backup / KEYS_FOLDER)
    with open_store(backup) as opened:
        opens, others = len(opened.read(patient)) > 0, len(opened.patients())
    shutil.copy(old / KEYS, backup / KEYS_FOLDER / KEYS)
    try:
        open_store(backup).close()
    except StoreError:
        return opens, others, False
    return opens, others, True
