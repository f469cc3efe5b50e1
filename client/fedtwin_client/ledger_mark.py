"""What a hospital remembers of its ledger outside of it: that one was begun, which, and who was to see it grow.

Design note: whoever deletes the ledger's folder, by accident or for a new budget, must not be taken for a hospital that
never had one. The mark is a file of its own in the hospital's root; who deletes that too still has witnesses to tell.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.journal import JournalError
from fedtwin_client.ledger_journal import LEDGER, read_ledger
from fedtwin_shared.durable import replace_file
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.encoding import encode_entry
from fedtwin_shared.ledger.entry import Policy
from fedtwin_shared.ledger.note import VerifierKey
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.ledger.witnesses import WITNESSES, read_witnesses
from fedtwin_shared.signing import canonical_json, digest

MARK_FILE: Final = "ledger.begun.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A hospital's ledger, None without one, and what its people should be told of who sees it."""

    state: LedgerState | None
    warnings: tuple[str, ...] = ()


def leave_mark(directory: HospitalDirectory, opening: Policy, key: VerifierKey) -> None:
    """Remember, durably, that the ledger with this first entry was begun; nothing where a mark is already."""
    file = directory.root / MARK_FILE
    if not file.exists():
        found = {"began": opening.time, "key": str(key), "opening": _name(opening), "origin": key.name}
        replace_file(file, canonical_json(found) + b"\n")


def is_marked(directory: HospitalDirectory) -> bool:
    """Return whether a ledger was ever begun here, as far as the mark tells."""
    return (directory.root / MARK_FILE).exists()


def read_own_ledger(directory: HospitalDirectory) -> LedgerState | None:
    """Return what the hospital's ledger adds up to, also while it runs; None: none was ever begun.

    Raises `JournalError`.

    - a ledger that was begun and is gone, or is another one now, is an error
    """
    state = read_ledger(directory.ledger)
    if not is_marked(directory):
        return state
    marked, file = _read_mark(directory.root / MARK_FILE), directory.root / MARK_FILE
    if state is None or state.opening is None:
        raise JournalError(
            file=directory.ledger, expected=f"the ledger that was begun here, as {file.name} says", found="none"
        )
    if _name(state.opening) != marked:
        raise JournalError(
            file=directory.ledger, expected=f"the ledger that was begun here, as {file.name} says", found="another"
        )
    return state


def examine_ledger(directory: HospitalDirectory) -> Standing:
    """Return how it stands with the hospital's ledger and its witnesses. Raises `ConfigurationError`, `JournalError`.

    - a ledger that witnesses cosigned, in a hospital that names none any more, is an error
    """
    state, file = read_own_ledger(directory), directory.root / WITNESSES
    watched = read_witnesses(file) is not None
    if state is None:
        lonely = f"{file}: names witnesses, but there is no ledger that they could see; `begin-ledger` begins one"
        return Standing(state=None, warnings=(lonely,) if watched else ())
    if watched:
        return Standing(state=state)
    with LogReader(directory.ledger / LEDGER) as log:
        if log.latest_note() is not None:
            raise JournalError(file=file, expected="the witnesses that cosigned this ledger before", found="no file")
    unseen = f"{file}: is not there, so nobody sees this ledger grow, and a restored backup would not be noticed"
    return Standing(state=state, warnings=(unseen,))


def _name(opening: Policy) -> str:
    """The first entry is salted, so no two ledgers share it."""
    return digest(encode_entry(opening))


def _read_mark(file: Path) -> str:
    try:
        return str(json.loads(file.read_bytes())["opening"])
    except (OSError, ValueError, LookupError, TypeError) as err:
        raise JournalError(file=file, expected="which ledger was begun here", found="a damaged file") from err
