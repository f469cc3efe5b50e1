"""The journal of a hospital as a privacy ledger: every charge and every answer is an entry that an auditor can check.

Design note: `charge` writes RESERVE and START in one commit, because training follows at once; `seal` writes SEAL and
the answer's bytes in one; `release` has the witnesses cosign the tree that holds the seal, writes RELEASE with its size
and the cosigned checkpoint in one, and gives what proves the charge. A crash before the first commit means that nothing
was trained; before the second, that the attempt is spent; after it, that the same bytes can be sent again. An answer
that too few witnesses have seen does not leave: it waits, sealed, and costs nothing more. There is one admission epoch,
so every patient stays in blocks that have paid for all that went before, and all blocks of a study's part are charged:
who takes part in a study is never narrowed to save budget.

After a failed write nobody knows what the disk holds, so the object refuses to go on; a new one reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from fedtwin_client.file_journal import decode_answer, encode_answer
from fedtwin_client.journal import JournalError, SealedAnswer, Spend, TaskKey
from fedtwin_client.reservation import reserve_task
from fedtwin_client.witnessing import Witnessing, cosign_log
from fedtwin_shared.durable import replace_file, sync_folder
from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.ledger import entry as entries
from fedtwin_shared.ledger.account import BudgetExceededError, LedgerState, Phase, StudyAccount, TransitionError
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.encoding import encode_entry, parse_entry
from fedtwin_shared.ledger.evidence import prove_answer
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note
from fedtwin_shared.ledger.state import History, verify_history
from fedtwin_shared.ledger.store import KeptNote, LogReader, LogWriter, NewEntry
from fedtwin_shared.ledger.study_programme import TEST, TRAIN, StudyProgramme
from fedtwin_shared.ledger.witness_client import HistoryError
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.signing import digest

LEDGER: Final = "ledger.sqlite"
INBOX: Final = "inbox"
SALT_BYTES: Final = 16
NOT_COSIGNED: Final = 0  # size of the checkpoint that left with an answer, of a ledger without witnesses


Note = entries.Refusal | entries.Conformance  # entries that cost nothing and follow from nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeClaim:
    """With what an empty ledger begins; fixed for its life, but for the site policy. Fields: see `entry.Policy`."""

    epsilon: Decimal
    delta: Decimal
    order: int
    programme: tuple[Use, ...]
    signer: str
    site_policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """Salted digests of who is in a study's cohort and of the keyed map from patients to blocks."""

    cohort: str
    blocks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the journal asks of the rest of the hospital. code, recipient: see `entry.Seal` and `entry.Release`.

    find_programme: of an approved study, by digest. clock: seconds since 1970. draw: that many private random bytes.
    witnessing: None: nobody sees this ledger grow, and its answers leave without proof. open_log: the disk.
    """

    find_programme: Callable[[str], StudyProgramme | None]
    find_membership: Callable[[TaskKey], Membership]
    code: str
    recipient: str
    clock: Callable[[], float]
    draw: Callable[[int], bytes]
    witnessing: Witnessing | None = None
    open_log: Callable[[Path], LogWriter] = LogWriter


class LedgerJournal:
    """The journal of a hospital, in a folder of its own.

    - a second process that opens the same folder gets a `JournalError`
    - an entry that does not follow from those before it is a `JournalError`, and nothing may be trained
    - a ledger that was begun with another claim is a `JournalError`
    - after a failed write `broken` is true and every charge and seal raises, until the folder is opened again
    """

    def __init__(self, folder: Path, *, claim: LifetimeClaim, surroundings: Surroundings) -> None:
        self.broken = False
        self._folder, self._surroundings = folder, surroundings
        self._history = History()
        with contextlib.ExitStack() as stack, self._report_failure():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._log = stack.enter_context(surroundings.open_log(folder / LEDGER))
            for data in self._log.entries():
                self._history.add(parse_entry(data))
            self._open(claim)
            self._collect()
            sync_folder(folder)
            self._files = stack.pop_all()

    def admit(self, study: str) -> RefusalCode | None:
        """Enrol an approved study, once; or return why its whole programme is beyond what any patient has left."""
        with self._report_failure():
            if study in self._history.now.studies:
                return None
            try:
                programme = self._surroundings.find_programme(study)
            except VerificationError:  # noise or rates that no ledger can price
                return RefusalCode.POLICY
            if programme is None:
                return RefusalCode.STUDY_UNKNOWN
            enrolment = entries.Enrolment(
                time=self._now(), salt=self._salt(), study=study, plan=programme.plan, parts=programme.parts
            )
            try:
                self._write([enrolment])
            except BudgetExceededError:
                return RefusalCode.BUDGET_SPENT
            except TransitionError:
                return RefusalCode.POLICY
        return None

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        """See `Journal.charge`. A task that costs nothing is not one that a study foresees, and is refused."""
        if spend == Spend():
            return RefusalCode.POLICY
        with self._report_failure():
            self._collect()
            if str(_ledger_key(key)) in self._history.now.tasks:
                return RefusalCode.ATTEMPT_SPENT
            if not (self.charged(key.study) + spend).within(limit):
                return RefusalCode.BUDGET_SPENT
            if (refusal := self.admit(key.study)) is not None:
                return refusal
            programme = self._surroundings.find_programme(key.study)
            if programme is None:
                return RefusalCode.STUDY_UNKNOWN
            try:
                # A crash before this returns means that nothing was trained; after it, that the attempt is spent.
                self._write(self._reservation(key, programme, spend))
            except BudgetExceededError:
                return RefusalCode.BUDGET_SPENT
            except TransitionError:
                return RefusalCode.POLICY
        return None

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        """See `Journal.seal`."""
        task = str(_ledger_key(key))
        kept = self._history.now.tasks.get(task)
        if kept is None or kept.phase is not Phase.STARTED:
            raise RuntimeError("expected a key that is charged and not sealed")
        with self._report_failure():
            # A crash before this returns means that the attempt is spent, and nothing has left.
            seal = entries.Seal(
                time=self._now(),
                salt=self._salt(),
                task=task,
                plan=answer.plan,
                output=digest(answer.envelope),
                code=self._surroundings.code,
            )
            self._write([seal], attach={_shelf(key): _with_digest(encode_answer(answer))})

    def release(self, key: TaskKey) -> bytes:
        """See `Journal.release`. A witness that remembers another history of this ledger breaks the journal for good.

        - RELEASE names the size of a checkpoint that enough witnesses cosigned and that holds the seal
        """
        task = str(_ledger_key(key))
        kept = self._history.now.tasks.get(task)
        if kept is None or kept.phase not in {Phase.SEALED, Phase.RELEASED}:
            raise RuntimeError("expected a key that is sealed")
        with self._report_failure():
            position = self._log.find(task, entries.Seal.TYPE)
            assert position is not None
            kept_note = self._cosigned(position + 1)
            size = NOT_COSIGNED if kept_note is None else parse_checkpoint(parse_note(kept_note.note).text).size
            if kept.phase is Phase.SEALED:
                release = entries.Release(
                    time=self._now(),
                    salt=self._salt(),
                    task=task,
                    recipient=self._surroundings.recipient,
                    checkpoint=size,
                )
                # A crash here asks the witnesses again: they cosign the same tree, or one that holds it.
                self._write([release], keep=kept_note)
            return b"" if kept_note is None else prove_answer(self._log, task, kept_note.note).encode()

    def refuse(self, plan: str, code: RefusalCode) -> None:
        """See `Journal.refuse`. The same refusal of the same plan is one entry."""
        with self._report_failure():
            self._write_once(entries.Refusal(time=self._now(), salt=self._salt(), plan=plan, code=code.value))

    def checkpoint(self) -> bytes | None:
        """Have the ledger cosigned as it is now and return the note; None: it has no witnesses.

        - its witnesses are asked, whatever the ledger itself says that they cosigned

        Raises `WitnessesAwayError`; `JournalError` where a witness remembers another history.
        """
        with self._report_failure():
            self._collect()
            kept = self._cosigned()
            if kept is None:
                return None
            self._log.keep_note(kept)
            return kept.note

    def sealed(self, key: TaskKey) -> SealedAnswer | None:
        """See `Journal.sealed`. An answer whose bytes were damaged counts as not sealed."""
        with self._report_failure():
            position = self._log.find(str(_ledger_key(key)), entries.Seal.TYPE)
            data = None if position is None else self._log.attachment(_shelf(key))
            if position is None or data is None:
                return None
            (body,) = self._log.entries(position, position + 1)
            seal = parse_entry(body)
        content = data[hashlib.sha256().digest_size :]
        if _with_digest(content) != data:
            return None
        answer = decode_answer(content)
        # The shelf holds the last answer of its run and task, which may be that of a later round.
        return answer if isinstance(seal, entries.Seal) and digest(answer.envelope) == seal.output else None

    def charged(self, study: str) -> Spend:
        """See `Journal.charged`."""
        account = self._history.now.studies.get(study)
        return Spend() if account is None else spend_of(account)

    @property
    def state(self) -> LedgerState:
        """What the ledger adds up to."""
        return self._history.state

    def close(self) -> None:
        """Give the folder free for another process."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, claim: LifetimeClaim) -> None:
        opening = self._history.now.policy
        policy = entries.Policy(
            time=self._now(),
            salt=self._salt(),
            epsilon=claim.epsilon,
            delta=claim.delta,
            order=claim.order,
            programme=claim.programme,
            signer=claim.signer,
            site_policy=claim.site_policy,
        )
        if opening is None:
            self._write([policy, entries.Epoch(time=policy.time, salt=self._salt(), number=0)])
        elif replace(policy, time=opening.time, salt=opening.salt) != opening:
            self._write([policy])  # refused for whatever changed but the site policy

    def _collect(self) -> None:
        """Take what other processes of this hospital left for the ledger, whose only writer this is."""
        for file in sorted((self._folder / INBOX).glob("*.json")):
            entry = parse_entry(file.read_bytes())
            if not isinstance(entry, Note):
                raise JournalError(file=file, expected="a refusal or a conformance run", found=entry.TYPE)
            self._write_once(replace(entry, time=self._now()))
            # A crash here leaves a file whose entry is there: it is not written twice.
            file.unlink()

    def _write_once(self, entry: Note) -> None:
        if self._log.find(entry.key, entry.TYPE) is None:
            self._write([entry])

    def _reservation(self, key: TaskKey, programme: StudyProgramme, spend: Spend) -> list[entries.Entry]:
        found = self._surroundings.find_membership(key)
        return reserve_task(
            self._history.now,
            _ledger_key(key),
            programme,
            spend,
            cohort=found.cohort,
            membership=found.blocks,
            time=self._now(),
            draw_salt=self._salt,
        )

    def _write(
        self,
        written: Sequence[entries.Entry],
        *,
        attach: Mapping[str, bytes] = MappingProxyType({}),
        keep: KeptNote | None = None,
    ) -> None:
        """Append what follows from the ledger so far; then raise `TransitionError` for the first that does not."""
        admitted: list[NewEntry] = []
        refused: TransitionError | None = None
        for entry in written:
            body = encode_entry(entry)
            try:
                self._history.add(entry)
            except TransitionError as err:
                refused = err
                break
            admitted.append(NewEntry(key=entry.key, kind=entry.TYPE, body=body))
        if admitted:
            self._log.append(admitted, attach=attach, keep=keep)
        if refused is not None:
            raise refused

    def _cosigned(self, least: int | None = None) -> KeptNote | None:
        witnessing = self._surroundings.witnessing
        return None if witnessing is None else cosign_log(self._log, witnessing, least=least)

    def _now(self) -> int:
        """The clock may be set back; the ledger's time may not."""
        return max(int(self._surroundings.clock()), self._history.now.time)

    def _salt(self) -> str:
        return self._surroundings.draw(SALT_BYTES).hex()

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        if self.broken:
            raise JournalError(file=self._folder, expected="to be opened again", found="an earlier failed write")
        try:
            yield
        except (LedgerError, HistoryError, TransitionError, VerificationError) as err:
            self.broken = True
            raise _journal_error(self._folder, err) from err
        except OSError as err:
            self.broken = True
            raise JournalError(
                file=self._folder, expected="a disk that reads and writes", found=err.strerror or type(err).__name__
            ) from err


def leave_note(folder: Path, note: Note) -> None:
    """Leave an entry for the ledger in `folder`: its writer, which may be another process, takes it with its next one.

    Durable on return. Raises `OSError`.
    """
    inbox = folder / INBOX
    inbox.mkdir(mode=0o700, exist_ok=True)
    data = encode_entry(note)
    replace_file(inbox / f"{digest(data)}.json", data)


def read_ledger(folder: Path) -> LedgerState | None:
    """Return what a hospital's ledger adds up to, without its lock: also while the hospital runs. None: no ledger.

    Raises `JournalError`.
    """
    if not (folder / LEDGER).exists():
        return None
    try:
        with LogReader(folder / LEDGER) as log:
            return verify_history(log.entries())
    except (LedgerError, TransitionError, VerificationError) as err:
        raise _journal_error(folder, err) from err


def spend_of(account: StudyAccount) -> Spend:
    """Return the steps and releases that were charged for a study: the first mechanism of either part."""
    parts, used = account.enrolment.parts, account.used
    first = {part.name: used.get((part.name, part.programme[0].mechanism), 0) for part in parts}
    return Spend(steps=first.get(TRAIN, 0), releases=first.get(TEST, 0))


def _ledger_key(key: TaskKey) -> entries.TaskKey:
    return entries.TaskKey(study=key.study, run=key.run, round=key.round, attempt=key.attempt, task=key.task.value)


def _shelf(key: TaskKey) -> str:
    """Where the last answer of a run and task is kept: earlier ones are not sent again, so they are not kept."""
    return f"{key.study}/{key.run}/{key.task.value}"


def _with_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest() + content


def _journal_error(folder: Path, err: FedtwinError) -> JournalError:
    return JournalError(file=err.file or folder, field=err.field, expected=err.expected, found=err.found)
