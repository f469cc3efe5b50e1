"""A hospital's ledger keeps the contract of every journal, and an auditor finds in it exactly what was charged."""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fedtwin_client.journal import Journal, JournalError, Spend, TaskKey
from fedtwin_client.ledger_journal import (
    INBOX,
    LEDGER,
    LedgerJournal,
    LifetimeClaim,
    Membership,
    Surroundings,
    leave_note,
    read_ledger,
)
from fedtwin_shared.ledger.account import Phase
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.encoding import encode_entry, parse_entry
from fedtwin_shared.ledger.entry import Abort, Part, Refusal
from fedtwin_shared.ledger.mechanism import Gaussian, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.ledger.second_opinion import verify_prices
from fedtwin_shared.ledger.state import verify_history
from fedtwin_shared.ledger.store import LogReader, LogWriter, NewEntry
from fedtwin_shared.ledger.study_programme import StudyProgramme, plan_programme
from fedtwin_shared.round import RefusalCode, Task
from fedtwin_shared.signing import digest
from tests.client.setting import make_setting
from tests.contracts.journal_contract import LIMIT, STUDY, JournalContract, answer, assert_same, key
from tests.world import make_world

TRAINING = PoissonGaussian(sampling_rate=Decimal("0.01"), noise_multiplier=Decimal(2))
EVALUATION = Gaussian(noise_multiplier=Decimal(20))
WHOLE = (Use(mechanism=TRAINING, count=1000), Use(mechanism=EVALUATION, count=2))
# The contract also charges steps and histograms at once, so both parts may run both.
PROGRAMME = StudyProgramme(
    plan=digest(b"signed study"),
    training=TRAINING,
    evaluation=EVALUATION,
    parts=(Part(name="test", programme=WHOLE[::-1]), Part(name="train", programme=WHOLE)),
)
CLAIM = LifetimeClaim(
    epsilon=Decimal(8),
    delta=Decimal("0.000001"),
    order=8,
    programme=WHOLE,
    signer="ed25519:" + "A" * 43 + "=",
    site_policy=digest(b"policy"),
)
SURROUNDINGS = Surroundings(
    find_programme=lambda _: PROGRAMME,
    find_membership=lambda key: Membership(cohort=digest(str(key).encode()), blocks=digest(b"map")),
    code=digest(b"code"),
    recipient="ed25519:" + "B" * 42 + "A=",
    clock=itertools.count(1_800_000_000).__next__,
    draw=os.urandom,
)


def open_journal(folder: Path) -> LedgerJournal:
    return LedgerJournal(folder, claim=CLAIM, surroundings=SURROUNDINGS)


class TestLedgerJournal(JournalContract):
    @pytest.fixture
    def journal(self, tmp_path: Path) -> Iterator[Journal]:
        with open_journal(tmp_path / "ledger") as journal:
            yield journal
            # Whatever the contract did, an auditor reads the same from the bytes alone.
            assert read_ledger(tmp_path / "ledger") == journal.state


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.seal(key(), answer())
        journal.charge(key(round_=2), Spend(steps=4), limit=LIMIT)
        before = journal.state
    with open_journal(tmp_path) as journal:
        assert journal.state == before
        assert journal.charged(STUDY) == Spend(steps=7)
        assert_same(journal.sealed(key()), answer())
        assert journal.sealed(key(round_=2)) is None
        assert journal.charge(key(round_=2), Spend(steps=1), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT
        journal.seal(key(round_=2), answer(2))
        assert_same(journal.sealed(key(round_=2)), answer(2))


def test_a_task_goes_through_every_step_and_nothing_is_there_in_clear(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        (task,) = journal.state.tasks.values()
        assert task.phase is Phase.STARTED
        journal.seal(key(), answer())
        (task,) = journal.state.tasks.values()
        assert task.phase is Phase.SEALED
        for _ in range(2):
            assert journal.release(key()) == b""  # nobody watches this ledger, so there is nothing to prove by
            (task,) = journal.state.tasks.values()
            assert task.phase is Phase.RELEASED
    with LogReader(tmp_path / LEDGER) as log:
        kinds = [parse_entry(data).TYPE for data in log.entries()]
    assert kinds == ["policy", "epoch", "enrolment", "cohort", "reserve", "start", "seal", "release"]


def test_a_second_attempt_of_a_round_is_a_charge_of_its_own(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for attempt in (1, 2):
            assert journal.charge(key(attempt=attempt), Spend(steps=3), limit=LIMIT) is None
        journal.seal(key(attempt=2), answer())
        assert journal.charged(STUDY) == Spend(steps=6)
        assert [task.phase for task in journal.state.tasks.values()] == [Phase.STARTED, Phase.SEALED]


def test_steps_are_charged_to_training_patients_and_histograms_to_test_patients(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        after_training = journal.state
        journal.charge(key(task=Task.EVALUATE), Spend(releases=1), limit=LIMIT)
        after_evaluation = journal.state
        assert journal.charged(STUDY) == Spend(steps=3, releases=1)
    assert after_training.spent("0/1.train") > 0
    assert after_training.spent("0/1.test") == after_training.spent("0") == 0
    assert after_evaluation.spent("0/1.train") == after_training.spent("0/1.train")
    assert after_evaluation.spent("0/1.test") > 0


def test_the_lifetime_ends_across_studies_and_runs(tmp_path: Path) -> None:
    """The study's own limit allows it; the patients' lifetime does not."""
    dear = Use(mechanism=Gaussian(noise_multiplier=Decimal("1.4")), count=1)
    programme = replace(PROGRAMME, training=dear.mechanism, parts=(Part(name="train", programme=(dear,)),))
    surroundings = replace(SURROUNDINGS, find_programme=lambda _: programme)
    with LedgerJournal(tmp_path, claim=CLAIM, surroundings=surroundings) as journal:
        for number, study in enumerate(("1" * 64, "2" * 64, "3" * 64, "4" * 64)):
            refusal = journal.charge(key(study=study), Spend(steps=1), limit=LIMIT)
            assert (refusal is None) == (number < 3), number
        assert refusal is RefusalCode.BUDGET_SPENT
        assert not journal.broken
        assert journal.charged("4" * 64) == Spend()
    state = read_ledger(tmp_path)
    assert state is not None
    assert all(state.spent(name) <= state.budget for name in state.blocks)


def test_what_no_ledger_may_hold_is_refused_before_anything_runs(tmp_path: Path) -> None:
    free = Use(mechanism=NotPrivate(), count=10)
    programme = replace(PROGRAMME, training=NotPrivate(), parts=(Part(name="train", programme=(free,)),))
    for found, code in ((programme, RefusalCode.BUDGET_SPENT), (None, RefusalCode.STUDY_UNKNOWN)):
        surroundings = replace(SURROUNDINGS, find_programme={STUDY: found}.get)
        with LedgerJournal(tmp_path, claim=CLAIM, surroundings=surroundings) as journal:
            assert journal.charge(key(), Spend(steps=1), limit=LIMIT) is code
            assert journal.state.tasks == {}
    with open_journal(tmp_path) as journal:
        assert journal.charge(key(), Spend(), limit=LIMIT) is RefusalCode.POLICY


def test_more_than_the_approved_programme_is_refused_whatever_the_limit_says(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        beyond = Spend(steps=10_000)
        assert journal.charge(key(), Spend(steps=1001), limit=beyond) is RefusalCode.POLICY
        assert journal.charge(key(), Spend(steps=1000), limit=beyond) is None


@pytest.mark.parametrize("change", [{"epsilon": Decimal(9)}, {"delta": Decimal("0.00001")}, {"order": 9}])
def test_a_ledger_keeps_the_claim_that_it_began_with(tmp_path: Path, change: dict[str, object]) -> None:
    open_journal(tmp_path).close()
    with pytest.raises(JournalError):
        LedgerJournal(tmp_path, claim=replace(CLAIM, **change), surroundings=SURROUNDINGS)  # type: ignore[arg-type]  # its own fields
    policy = replace(CLAIM, site_policy=digest(b"stricter"))
    with LedgerJournal(tmp_path, claim=policy, surroundings=SURROUNDINGS) as journal:
        assert journal.state.in_force.site_policy == digest(b"stricter")
        assert journal.state.claims == (Decimal(8),)


def test_a_clock_that_is_set_back_stops_nothing(tmp_path: Path) -> None:
    open_journal(tmp_path).close()
    late = replace(SURROUNDINGS, clock=lambda: 1.0)
    with LedgerJournal(tmp_path, claim=CLAIM, surroundings=late) as journal:
        assert journal.charge(key(), Spend(steps=1), limit=LIMIT) is None


def test_a_second_process_gets_a_clear_error(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        with pytest.raises(JournalError):
            open_journal(tmp_path)
        assert read_ledger(tmp_path) is not None
    open_journal(tmp_path).close()


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.seal(key(), answer())
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert {LEDGER, f"{LEDGER}-wal"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_a_damaged_or_lost_answer_counts_as_not_sealed(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        journal.seal(key(), answer())
    for damage in ("UPDATE attachment SET data = substr(data, 1, length(data) - 1)", "DELETE FROM attachment"):
        with contextlib.closing(sqlite3.connect(tmp_path / LEDGER)) as connection, connection:
            connection.execute(damage)
        with open_journal(tmp_path) as journal:
            assert journal.sealed(key()) is None
            assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT


def test_the_last_answer_of_a_run_and_task_is_the_one_that_is_kept(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for number in (1, 2):
            journal.charge(key(round_=number), Spend(steps=1), limit=LIMIT)
            journal.seal(key(round_=number), answer(number))
        assert_same(journal.sealed(key(round_=2)), answer(2))
        other = key(task=Task.EVALUATE)
        journal.charge(other, Spend(releases=1), limit=LIMIT)
        journal.seal(other, answer(3))
        assert_same(journal.sealed(other), answer(3))
        assert_same(journal.sealed(key(round_=2)), answer(2))


def test_no_ledger_is_no_spending(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None


def test_a_whole_round_of_a_hospital_is_in_its_ledger(tmp_path: Path) -> None:
    world = make_world()
    programme = plan_programme(world.study, plan=digest(b"signed study"))
    surroundings = replace(SURROUNDINGS, find_programme=lambda _: programme)
    with LedgerJournal(tmp_path, claim=CLAIM, surroundings=surroundings) as journal:
        setting = make_setting(world=world, journal=journal)
        plan = setting.plan()
        first, arrays, _ = setting.hospital.answer(plan, setting.model())
        again, *_ = setting.hospital.answer(plan, setting.model())
        assert arrays
        assert first == again
    with LogReader(tmp_path / LEDGER) as log:
        state = verify_history(log.entries())
    verify_prices(state)
    assert [task.phase for task in state.tasks.values()] == [Phase.RELEASED]
    assert state.studies[world.study.digest].number == 1


class NoRoom(LogWriter):
    """A disk that takes no seal any more."""

    def append(self, entries: Sequence[NewEntry], **beside: Any) -> tuple[int, ...]:
        if any(entry.kind == "seal" for entry in entries):
            raise LedgerError(expected="a sound database", found="disk full")
        return super().append(entries, **beside)


def test_an_answer_that_no_seal_names_is_not_one(tmp_path: Path) -> None:
    """Neither the seal nor the bytes are there: nothing left, and the attempt is spent."""
    surroundings = replace(SURROUNDINGS, open_log=NoRoom)
    with LedgerJournal(tmp_path, claim=CLAIM, surroundings=surroundings) as journal:
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        with pytest.raises(JournalError, match="disk full"):
            journal.seal(key(), answer())
        assert journal.broken
    with open_journal(tmp_path) as journal:
        assert journal.sealed(key()) is None
        assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT
        with pytest.raises(RuntimeError, match="sealed"):
            journal.release(key())


def test_what_another_process_leaves_is_an_entry_once(tmp_path: Path) -> None:
    refusal = Refusal(time=1, salt="0" * 32, plan=digest(b"a study"), code="policy")
    with open_journal(tmp_path) as journal:
        leave_note(tmp_path, refusal)
        journal.charge(key(), Spend(steps=3), limit=LIMIT)
        leave_note(tmp_path, replace(refusal, salt="1" * 32))
    open_journal(tmp_path).close()
    with LogReader(tmp_path / LEDGER) as log:
        entries = [parse_entry(data) for data in log.entries()]
    assert [(entry.plan, entry.code) for entry in entries if isinstance(entry, Refusal)] == [
        (digest(b"a study"), "policy")
    ]
    assert not list((tmp_path / INBOX).iterdir())
    # Another process may note what it refused; it may not charge, nor give back.
    (tmp_path / INBOX / "forged.json").write_bytes(encode_entry(Abort(time=1, salt="2" * 32, task=ledger_name(key()))))
    with pytest.raises(JournalError, match="refusal or a conformance"):
        open_journal(tmp_path)


def ledger_name(name: TaskKey) -> str:
    return f"{name.study}/{name.run}/{name.round}/{name.attempt}/{name.task.value}"
