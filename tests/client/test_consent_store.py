"""The consent store: who is in a round, what they may have touched, and that the disk tells nothing."""

import multiprocessing
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from fedtwin_client.consent import OWN, Decision, is_admitted, understand
from fedtwin_client.consent_store import DATABASE, KEYS, ConsentStore
from fedtwin_client.journal import TaskKey
from fedtwin_client.store.store import StoreError
from fedtwin_shared.round import Task
from tests.client.premises import SECRET_PATIENT
from tests.client.setting import RUN
from tests.client.test_consent import NOW, fhir

REFUSAL = Decision(source=OWN, outcome="deny")
PATIENTS = ("p1", "p2", SECRET_PATIENT)


def key(round_: int = 1, *, attempt: int = 1, task: Task = Task.TRAIN) -> TaskKey:
    return TaskKey(study="a" * 64, run=RUN, round=round_, attempt=attempt, task=task)


def judge(decisions: Any) -> bool:
    return is_admitted(decisions, "opt-out", at=NOW)


def test_what_was_said_is_read_back_by_another_process_in_order(tmp_path: Path) -> None:
    ConsentStore(tmp_path).add([("p1", REFUSAL), ("p2", understand(fhir()))])
    ConsentStore(tmp_path).add([("p1", Decision(source=OWN, outcome="permit"))])
    store = ConsentStore(tmp_path)
    assert [one.outcome for one in store.decisions("p1")] == ["deny", "permit"]
    assert store.decisions("p2") == (understand(fhir()),)
    assert store.decisions("p3") == ()
    assert store.count(judge=judge) == (2, 2)


def test_no_id_stands_in_clear_on_the_disk(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path)
    store.add([(SECRET_PATIENT, REFUSAL)])
    store.begin_round(key(), PATIENTS, judge=judge)
    store.note_release(key())
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert SECRET_PATIENT.encode() not in content
            assert b"deny" not in content
            assert file.stat().st_mode & 0o077 == 0


def test_a_withdrawal_takes_effect_at_the_next_round_and_not_inside_one(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path)
    assert store.begin_round(key(), PATIENTS, judge=judge) == set(PATIENTS)
    store.add([("p1", REFUSAL)])
    for later in (key(attempt=2), key(task=Task.EVALUATE)):
        assert ConsentStore(tmp_path).begin_round(later, PATIENTS, judge=judge) == set(PATIENTS)
    assert store.begin_round(key(2), PATIENTS, judge=judge) == set(PATIENTS) - {"p1"}
    store.add([("p1", Decision(source=OWN, outcome="permit"))])
    assert store.begin_round(key(2), PATIENTS, judge=judge) == set(PATIENTS) - {"p1"}
    assert store.begin_round(key(3), PATIENTS, judge=judge) == set(PATIENTS)


def test_the_releases_that_a_patient_may_be_in_are_listed_and_no_other(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path, clock=lambda: 1000.0)
    store.begin_round(key(), PATIENTS, judge=judge)
    store.note_release(key())
    store.note_release(key(task=Task.EVALUATE))
    store.note_release(key())  # a repeated task is one release
    store.add([("p1", REFUSAL)])
    store.begin_round(key(2), PATIENTS, judge=judge)
    store.note_release(key(2))
    store.begin_round(key(3), PATIENTS, judge=judge)  # begun, and refused before anything ran
    listed = {patient: [(one.round, one.task) for one in store.releases(patient)] for patient in ("p1", "p2", "px")}
    assert listed == {
        "p1": [(1, "train"), (1, "evaluate")],
        "p2": [(1, "train"), (1, "evaluate"), (2, "train")],
        "px": [],
    }
    assert store.releases("p1")[0].time == 1000


def test_a_forgotten_patient_is_in_no_cohort_and_in_no_list(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path)
    store.add([("p1", Decision(source=OWN, outcome="permit"))])
    store.begin_round(key(), PATIENTS, judge=judge)
    store.note_release(key())
    store.forget("p1")
    store.forget("p2")  # who never said anything
    assert store.decisions("p1") == ()
    assert store.releases("p1") == ()
    assert store.begin_round(key(), PATIENTS, judge=judge) == {SECRET_PATIENT}
    assert store.begin_round(key(2), PATIENTS, judge=judge) == {SECRET_PATIENT}
    assert store.add([("p1", Decision(source=OWN, outcome="permit"))]) == 0
    assert len(store.releases(SECRET_PATIENT)) == 1


def test_what_cannot_be_read_admits_nobody(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path / "consent")
    store.add([("p1", REFUSAL)])
    shutil.copytree(tmp_path / "consent", tmp_path / "kept")
    (tmp_path / "consent" / DATABASE).unlink()
    with pytest.raises(StoreError, match="expected the consents of these keys"):
        store.begin_round(key(), PATIENTS, judge=judge)
    shutil.copytree(tmp_path / "kept", tmp_path / "consent", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "consent" / KEYS)
    with pytest.raises(StoreError, match="expected one that its patient's key opens"):
        store.begin_round(key(), PATIENTS, judge=judge)
    shutil.rmtree(tmp_path / "consent" / KEYS)
    shutil.copytree(tmp_path / "kept", tmp_path / "consent", dirs_exist_ok=True)
    with sqlite3.connect(tmp_path / "consent" / DATABASE) as database:
        database.execute("UPDATE decision SET sealed = zeroblob(60)")
    with pytest.raises(StoreError, match="expected one that its patient's key opens"):
        store.begin_round(key(), PATIENTS, judge=judge)


def test_a_decision_of_one_patient_does_not_stand_for_another(tmp_path: Path) -> None:
    store = ConsentStore(tmp_path)
    store.add([("p1", REFUSAL), ("p2", Decision(source=OWN, outcome="permit"))])
    with sqlite3.connect(tmp_path / DATABASE) as database:
        (one, other) = (sealed for (sealed,) in database.execute("SELECT sealed FROM decision ORDER BY seq"))
        database.execute("UPDATE decision SET sealed = ? WHERE seq = 1", (other,))
        database.execute("UPDATE decision SET sealed = ? WHERE seq = 2", (one,))
    with pytest.raises(StoreError):
        store.decisions("p1")


def add_some(folder: Path, name: str) -> None:
    for number in range(5):
        ConsentStore(folder).add([(f"{name} {number}", REFUSAL)])


def test_several_processes_may_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_some, args=(tmp_path, name)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert ConsentStore(tmp_path).count(judge=judge) == (10, 0)
