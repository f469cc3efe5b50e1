"""A hospital's own privacy ledger: begun once by its people, then the journal of its node for ever.

Design note: a hospital without a ledger keeps the file journal, which knows studies but no lifetime. A ledger begins
before anything was spent, at the (ε, δ) that its people state and an order from the studies they approved, and its
folder is never given up for the file journal again: a ledger that is gone is an error and no new budget. That it was
begun is remembered outside its folder, in the mark of `ledger_mark` and by its witnesses.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.file_journal import FileJournal, read_spending
from fedtwin_client.gate import Gate, open_gate
from fedtwin_client.journal import JournalError, Spend, TaskKey, WitnessesAwayError
from fedtwin_client.ledger_journal import (
    SALT_BYTES,
    LedgerJournal,
    LifetimeClaim,
    Membership,
    Note,
    Surroundings,
    leave_note,
    spend_of,
)
from fedtwin_client.ledger_mark import examine_ledger, is_marked, leave_mark, read_own_ledger
from fedtwin_client.studies import STUDY_FILE, StudyFolder, open_studies
from fedtwin_client.witnessing import Witnessing
from fedtwin_shared.durable import create_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.block_report import BlockReport, PartPrice, describe_blocks, price_parts
from fedtwin_shared.ledger.entry import Conformance, Refusal
from fedtwin_shared.ledger.filter import choose_order
from fedtwin_shared.ledger.mechanism import Mechanism, Use
from fedtwin_shared.ledger.merkle import EMPTY_ROOT
from fedtwin_shared.ledger.note import Checkpoint, VerifierKey, format_note, parse_checkpoint, parse_note, sign_note
from fedtwin_shared.ledger.study_programme import StudyProgramme, plan_programme
from fedtwin_shared.ledger.witness_client import ask_for_earlier
from fedtwin_shared.ledger.witnesses import WITNESSES, hospital_log_key, read_witnesses
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.signing import digest

if TYPE_CHECKING:  # torch and pandas, which nothing here needs
    from fedtwin_client.cohort import Cohort

LOGGER: Final = logging.getLogger("fedtwin.ledger")
KEY_FILE: Final = "membership.key"
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """What a hospital's patients have spent of their lifetime, and what each approved study may still cost them."""

    epsilon: Decimal
    delta: Decimal
    blocks: tuple[BlockReport, ...]
    prices: Mapping[str, tuple[PartPrice, ...]]  # by digest of the study


class CohortCommitments:
    """Keyed digests of who is where: they tell an outsider nothing, and whoever holds the key can check them."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._parts: dict[str, bytes] = {}

    def remember(self, study: str, cohort: Cohort) -> None:
        """Keep who is in which part of a study, in this process only."""
        parts = (("test", cohort.test), ("train", cohort.train))
        lines = [f"{patient}\t{name}" for name, examples in parts for patient in examples.patients]
        self._parts[study] = "\n".join(sorted(lines)).encode()

    def find(self, key: TaskKey) -> Membership:
        """Return the commitments for one task, another pair for each."""
        parts = self._parts[key.study]
        round_ = f"cohort {key.study}/{key.run}/{key.round}\n".encode()
        task = f"blocks {key.study}/{key.run}/{key.round}/{key.attempt}/{key.task.value}\n".encode()
        cohort, blocks = (hmac.new(self._key, label + parts, hashlib.sha256).hexdigest() for label in (round_, task))
        return Membership(cohort=cohort, blocks=blocks)


def begin_ledger(directory: HospitalDirectory, gate: Gate, *, epsilon: Decimal, delta: Decimal) -> LedgerState:
    """Begin the ledger of a hospital that has spent nothing, for the lifetime of its patients.

    Raises `ConfigurationError`, `JournalError`; `VerificationError` for an (ε, δ) that no order can reach;
    `HistoryError` and `WitnessesAwayError` of the witnesses that are configured.

    - a ledger that is there, was there, or is known to a witness is never begun anew
    """
    read_own_ledger(directory)
    if is_marked(directory) or (directory.ledger / KEY_FILE).exists():
        raise ConfigurationError(file=directory.ledger, expected="no ledger yet", found="one")
    if read_spending(directory.journal):
        raise ConfigurationError(file=directory.journal, expected="a hospital that spent nothing", found="spending")
    studies = open_studies(directory, gate)
    programmes = [programme_of(directory, studies, study) for study in studies.digests()]
    uses = _add_up(use for found in programmes if found for part in found.parts for use in part.programme)
    if not uses:
        expected = "an approved study: the ledger's order follows from what is asked of its patients"
        raise ConfigurationError(file=directory.studies, expected=expected, found="none")
    claim = LifetimeClaim(
        epsilon=epsilon,
        delta=delta,
        order=choose_order(epsilon, delta, uses),
        programme=uses,
        signer=gate.public_key,
        site_policy=_digest_policy(directory),
    )
    surroundings = _surroundings(directory, studies, CohortCommitments(b""))  # nothing is charged here
    if surroundings.witnessing is not None:
        _ask_for_earlier(surroundings.witnessing)
    directory.ledger.mkdir(mode=0o700, exist_ok=True)
    with LedgerJournal(directory.ledger, claim=claim, surroundings=surroundings) as journal:
        # A crash before the key is there leaves a ledger that no node opens, and that may be begun again as it is.
        create_file(directory.ledger / KEY_FILE, secrets.token_bytes(KEY_BYTES))
        state = journal.state
        assert state.opening is not None
        # A crash before the mark is there leaves a ledger that is marked when it is opened.
        leave_mark(directory, state.opening, ledger_key(directory))
        return state


def open_journal(
    directory: HospitalDirectory, studies: StudyFolder
) -> tuple[FileJournal | LedgerJournal, CohortCommitments | None]:
    """Return the hospital's journal: its ledger where one was begun; and what must be told of each cohort.

    Raises `ConfigurationError`, `JournalError`.
    """
    standing = examine_ledger(directory)
    for warning in standing.warnings:
        LOGGER.warning("%s", warning)
    if standing.state is None and not directory.ledger.exists():
        return FileJournal(directory.journal), None
    state = standing.state
    if state is None or state.opening is None:
        raise JournalError(file=directory.ledger, expected="the ledger that was begun", found="none")
    opening = state.opening
    claim = LifetimeClaim(
        epsilon=opening.epsilon,
        delta=opening.delta,
        order=opening.order,
        programme=opening.programme,
        signer=opening.signer,
        site_policy=_digest_policy(directory),
    )
    surroundings, commitments = _with_commitments(directory, studies)
    journal = LedgerJournal(directory.ledger, claim=claim, surroundings=surroundings)
    try:
        # A ledger that is not the one which witnesses know stops here, before anything is charged to it.
        journal.checkpoint()
    except WitnessesAwayError as err:
        LOGGER.warning("the ledger is opened unseen; answers will wait: %s", err)
    except JournalError:
        journal.close()
        raise
    leave_mark(directory, opening, ledger_key(directory))
    return journal, commitments


def checkpoint_ledger(directory: HospitalDirectory) -> Checkpoint | None:
    """Have the ledger of a hospital whose node does not run cosigned as it is now; None: it has no witnesses.

    Raises `ConfigurationError`, `JournalError`, `WitnessesAwayError`.
    """
    journal, _ = open_journal(directory, open_studies(directory, open_gate(directory)))
    with contextlib.closing(journal):
        note = journal.checkpoint() if isinstance(journal, LedgerJournal) else None
    return None if note is None else parse_checkpoint(parse_note(note).text)


def note_refusal(directory: HospitalDirectory, envelope: bytes, code: RefusalCode) -> None:
    """Have the ledger keep that this hospital refused what is in `envelope`; nothing without a ledger."""
    _leave(directory, Refusal(time=int(time.time()), salt=_new_salt(), plan=digest(envelope), code=code.value))


def note_conformance(directory: HospitalDirectory, report: bytes, *, passed: bool) -> None:
    """Have the ledger keep that the training step was attacked, with which report; nothing without a ledger."""
    outcome = "passed" if passed else "failed"
    entry = Conformance(
        time=int(time.time()), salt=_new_salt(), code=digest_code(), result=digest(report), outcome=outcome
    )
    _leave(directory, entry)


def ledger_key(directory: HospitalDirectory) -> VerifierKey:
    """Return what witnesses and auditors pin of this hospital's ledger."""
    gate = open_gate(directory)
    return hospital_log_key(gate.site, gate.public_key)


def read_totals(directory: HospitalDirectory) -> Mapping[str, Spend]:
    """Return what was charged, by study digest, without a lock: also while the hospital runs. Raises `JournalError`."""
    state = read_own_ledger(directory)
    if state is None:
        return read_spending(directory.journal)
    return {study: spend_of(account) for study, account in state.studies.items()}


def describe_lifetime(directory: HospitalDirectory, gate: Gate) -> Lifetime | None:
    """Return what is left of a lifetime, and the price of each approved study for every block; None: no ledger."""
    state = read_own_ledger(directory)
    if state is None:
        return None
    studies = open_studies(directory, gate)
    prices = {}
    for study in studies.digests():
        programme = programme_of(directory, studies, study)
        if programme is not None:
            prices[study] = price_parts(state, programme.parts)
    return Lifetime(epsilon=state.claims[-1], delta=state.in_force.delta, blocks=describe_blocks(state), prices=prices)


def programme_of(directory: HospitalDirectory, studies: StudyFolder, study: str) -> StudyProgramme | None:
    """Return what an approved study may run; None for one that is not approved. Raises `VerificationError`."""
    approved = studies.find(study)
    if approved is None:
        return None
    envelope = (directory.studies / study / STUDY_FILE).read_bytes()
    return plan_programme(approved.study, plan=digest(envelope))


def digest_code() -> str:
    """Return the digest of the program itself: every source file of the two packages that run at a hospital."""
    import fedtwin_client
    import fedtwin_shared

    total = hashlib.sha256()
    for package in (fedtwin_client, fedtwin_shared):
        folder = Path(package.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            total.update(f"{package.__name__}/{file.relative_to(folder).as_posix()}\n".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _leave(directory: HospitalDirectory, note: Note) -> None:
    read_own_ledger(directory)
    if not (directory.ledger / KEY_FILE).exists():
        return
    try:
        leave_note(directory.ledger, note)
    except OSError as err:
        raise JournalError(file=directory.ledger, expected="a folder to write to", found=type(err).__name__) from err


def _new_salt() -> str:
    return secrets.token_hex(SALT_BYTES)


def _with_commitments(directory: HospitalDirectory, studies: StudyFolder) -> tuple[Surroundings, CohortCommitments]:
    try:
        key = (directory.ledger / KEY_FILE).read_bytes()
    except OSError as err:
        raise JournalError(
            file=directory.ledger / KEY_FILE, expected="the key of the ledger's digests", found="none"
        ) from err
    commitments = CohortCommitments(key)
    return _surroundings(directory, studies, commitments), commitments


def _surroundings(directory: HospitalDirectory, studies: StudyFolder, commitments: CohortCommitments) -> Surroundings:
    gate, witnesses = open_gate(directory), read_witnesses(directory.root / WITNESSES)
    origin = ledger_key(directory).name
    return Surroundings(
        find_programme=lambda study: programme_of(directory, studies, study),
        find_membership=commitments.find,
        code=digest_code(),
        recipient=directory.config.coordinator.public_key,
        clock=time.time,
        draw=secrets.token_bytes,
        witnessing=None
        if witnesses is None
        else Witnessing(
            origin=origin, sign=functools.partial(sign_note, name=origin, key=gate.key), witnesses=witnesses
        ),
    )


def _ask_for_earlier(witnessing: Witnessing) -> None:
    """Raise unless enough witnesses say that they never saw a ledger of this hospital."""
    witnesses = witnessing.witnesses
    text = Checkpoint(origin=witnessing.origin, size=0, root=EMPTY_ROOT).text
    silent = ask_for_earlier(format_note(text, [witnessing.sign(text)]), witnesses.contacts)
    if len(witnesses.contacts) - len(silent) < witnesses.required:
        away = "; ".join(f"{name}: {reason}" for name, reason in sorted(silent.items()))
        raise WitnessesAwayError(
            field="witnesses", expected=f"{witnesses.required} of {len(witnesses.contacts)}", found=away
        )


def _add_up(uses: Iterable[Use]) -> tuple[Use, ...]:
    counts: dict[Mechanism, int] = {}
    for use in uses:
        counts[use.mechanism] = counts.get(use.mechanism, 0) + use.count
    return tuple(Use(mechanism=mechanism, count=count) for mechanism, count in counts.items())


def _digest_policy(directory: HospitalDirectory) -> str:
    return directory.config.policy.digest(directory.config.name)
