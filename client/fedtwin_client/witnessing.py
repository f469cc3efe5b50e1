"""Checkpoints of the hospital's own ledger: signed here, cosigned by the witnesses it trusts, or not good enough."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from fedtwin_client.journal import WitnessesAwayError
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.note import Checkpoint, NoteSignature, format_note, parse_checkpoint, parse_note
from fedtwin_shared.ledger.store import KeptNote, LogReader
from fedtwin_shared.ledger.witness_client import cosign_checkpoint
from fedtwin_shared.ledger.witnesses import Witnesses


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessing:
    """Under which name and by what this ledger's checkpoints are signed, and the witnesses that must cosign them."""

    origin: str
    sign: Callable[[str], NoteSignature]
    witnesses: Witnesses


def cosign_log(log: LogReader, witnessing: Witnessing, *, least: int | None = None) -> KeptNote:
    """Return a checkpoint of at least that many entries that enough witnesses cosigned: the log's last, or a new one.

    least: None: of all entries, and the witnesses are asked even where the log's last says so already. A backup that
    was taken at a cosigned checkpoint agrees with itself; only its witnesses know that there was more.

    Raises `WitnessesAwayError` where too few cosign, `HistoryError` where one remembers another history.
    """
    witnesses, last = witnessing.witnesses, log.latest_note()
    if least is not None and last is not None and parse_checkpoint(parse_note(last).text).size >= least:
        with contextlib.suppress(VerificationError):  # the witnesses that count may have changed since
            verify_cosignatures(parse_note(last), witnesses.keys, required=witnesses.required)
            return KeptNote(note=last)
    text = Checkpoint(origin=witnessing.origin, size=log.size, root=log.root()).text
    asked = cosign_checkpoint(log, format_note(text, [witnessing.sign(text)]), witnesses.contacts)
    if len(asked.cosigners) < witnesses.required:
        away = "; ".join(f"{name}: {reason}" for name, reason in sorted(asked.absent.items()))
        raise WitnessesAwayError(
            field="witnesses", expected=f"{witnesses.required} of {len(witnesses.contacts)}", found=away
        )
    return asked.kept
