"""Consent: what FHIR says and is understood as, who is in a round's cohort, and that nothing of it leaves or leaks."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.admission import ConsentingPatients
from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.cohort import keep_patients
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.consent import OWN, Decision, is_admitted, understand
from fedtwin_client.consent_store import DATABASE, KEYS, ConsentStore
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import KEY_FILE, CohortCommitments, begin_ledger
from fedtwin_client.ingest.fhir import read_message
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.keeping import StoreKeeper
from fedtwin_client.ingest.readings import Draft
from fedtwin_client.ingest.records import ConsentRecord
from fedtwin_client.ingest.registry import Registry, add_device, write_registry
from fedtwin_client.installation import load_cohort, open_installation
from fedtwin_client.journal import TaskKey
from fedtwin_client.ledger_journal import read_ledger
from fedtwin_client.store.block_store import open_store
from fedtwin_client.store.store import StoreError
from fedtwin_shared.cli import main
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from tests.client.ingest.bedside import make_device
from tests.client.premises import SECRET_PATIENT, make_premises, write_study
from tests.client.setting import RUN
from tests.world import World, make_world

NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)


def fhir(**changes: Any) -> ConsentRecord:
    """Return what ingest reads of an R4 consent to research, some of it changed; None takes a field away."""
    resource = {
        "resourceType": "Consent",
        "id": "c1",
        "status": "active",
        "patient": {"reference": "Patient/p1"},
        "dateTime": "2026-01-01",
        "provision": {"type": "permit", "period": {"start": "2026-01-01", "end": "2027-01-01"}},
    } | changes
    resource = {name: value for name, value in resource.items() if value is not None}
    (record,) = read_message(json.dumps(resource).encode(), Draft()).records
    assert isinstance(record, ConsentRecord)
    return record


def provision(**fields: Any) -> dict[str, Any]:
    return {"provision": fields}


def purpose(*codes: str) -> list[dict[str, str]]:
    return [{"code": code} for code in codes]


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("permission", {}, "permit"),
    ("for research", provision(type="permit", purpose=purpose("HRESCH", "TREAT")), "permit"),
    ("for treatment alone", provision(type="permit", purpose=purpose("TREAT")), "none"),
    ("with an exception inside", provision(type="permit", provision=[{"type": "deny"}]), "deny"),
    ("its end unreadable", provision(type="permit", period={"end": "next year"}), "deny"),
    ("not begun", provision(type="permit", period={"start": "2026-06-02"}), "none"),
    ("over", provision(type="permit", period={"end": "2026-05-31"}), "none"),
    ("its last day", provision(type="permit", period={"end": "2026-06-01"}), "permit"),
    ("its last month", provision(type="permit", period={"end": "2026-06"}), "permit"),
    ("its last year", provision(type="permit", period={"end": "2026"}), "permit"),
    ("refusal", provision(type="deny"), "deny"),
    ("refusal of research", provision(type="deny", purpose=purpose("HRESCH")), "deny"),
    ("refusal of advertising alone", provision(type="deny", purpose=purpose("HMARKT")), "none"),
    ("refusal of something unknown", provision(type="deny", purpose=purpose("XYZ")), "deny"),
    ("refusal that is over", provision(type="deny", period={"end": "2026-05-31"}), "none"),
    ("refusal, its end unreadable", provision(type="deny", period={"end": "soon"}), "deny"),
    ("rejected", {"status": "rejected"}, "deny"),
    ("draft", {"status": "draft"}, "none"),
    ("entered in error", {"status": "entered-in-error"}, "none"),
    ("a status nobody knows", {"status": "maybe"}, "deny"),
    ("by policy", {"provision": None, "policyRule": {"coding": [{"code": "OPTIN"}]}}, "permit"),
    ("against by policy", {"provision": None, "policyRule": {"coding": [{"code": "OPTOUT"}]}}, "deny"),
    ("no decision", {"provision": None}, "deny"),
    ("R5 permission", {"patient": None, "subject": {"reference": "Patient/p1"}, "decision": "permit"}, "permit"),
    ("R5 refusal", {"provision": None, "decision": "deny"}, "deny"),
]


@pytest.mark.parametrize(("changes", "outcome"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_consent_of_fhir_is_understood_or_is_a_refusal(changes: dict[str, Any], outcome: str) -> None:
    decision = understand(fhir(**changes))
    said = decision.outcome if decision.holds(NOW) else "none"
    assert said == outcome
    assert is_admitted([decision], "opt-out", at=NOW) is (outcome != "deny")
    assert is_admitted([decision], "opt-in", at=NOW) is (outcome == "permit")


def test_who_said_nothing_is_in_by_opt_out_and_out_by_opt_in() -> None:
    assert is_admitted([], "opt-out", at=NOW)
    assert not is_admitted([], "opt-in", at=NOW)


SAID = st.lists(
    st.builds(
        Decision,
        source=st.sampled_from(["a", "b", OWN]),
        outcome=st.sampled_from(["permit", "deny", "none"]),
        since=st.one_of(st.none(), st.integers(0, 4)),
        until=st.one_of(st.none(), st.integers(0, 4)),
    ),
    max_size=6,
)


@given(SAID, st.sampled_from(["opt-in", "opt-out"]), st.integers(0, 4))
def test_a_refusal_outweighs_everything_and_only_its_own_source_takes_it_back(
    said: list[Decision], rule: Any, at: int
) -> None:
    refusal = Decision(source="refusing", outcome="deny")
    for place in range(len(said) + 1):
        assert not is_admitted([*said[:place], refusal, *said[place:]], rule, at=at)
    renewed = [*said, refusal, Decision(source="refusing", outcome="permit")]
    assert is_admitted(renewed, rule, at=at) or any(one.outcome == "deny" for one in said)


@given(SAID, st.integers(0, 4))
def test_opt_in_admits_nobody_whom_opt_out_does_not(said: list[Decision], at: int) -> None:
    assert not is_admitted(said, "opt-in", at=at) or is_admitted(said, "opt-out", at=at)


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


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    return directory


def test_who_is_left_keeps_their_rows_bit_for_bit(directory: HospitalDirectory, world: World) -> None:
    cohort = load_cohort(directory, world.study, "north")
    everybody = {*cohort.train.patients, *cohort.test.patients}
    assert keep_patients(cohort, everybody) is cohort
    gone = {cohort.train.patients[3], cohort.test.patients[0]}
    left = keep_patients(cohort, everybody - gone)
    for before, after in ((cohort.train, left.train), (cohort.test, left.test)):
        assert after.patients == tuple(one for one in before.patients if one not in gone)
        rows = [before.patients.index(one) for one in after.patients]
        for name in ("x", "mask", "y", "groups"):
            assert (getattr(before, name)[rows] == getattr(after, name)).all()


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_hospital_leaves_withdrawn_patients_out_and_its_messages_and_ledger_tell_nothing(
    directory: HospitalDirectory,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin_ledger(directory, open_gate(directory), epsilon=Decimal(20), delta=Decimal("0.000001"))
    installed, model = open_installation(directory), initialise(world.study)
    trained: list[tuple[str, ...]] = []
    original = installed.hospital._train

    def watch(*given: Any) -> Any:
        trained.append(given[3].patients)
        return original(*given)

    installed.hospital._train = watch
    try:
        for round_ in (1, 2, 3):
            plan = RoundPlan(
                study=world.study.digest,
                run=RUN,
                round=round_,
                attempt=1,
                task=Task.TRAIN,
                model=digest_parameters(model),
            )
            signed = sign_round_plan(plan, world.coordinator)
            envelope, arrays, *_ = installed.hospital.answer(signed, model)
            answer = verify_answer(
                envelope, arrays, plan=signed, task=Task.TRAIN, study=world.study, roster=world.roster
            )
            assert isinstance(answer, SiteUpdate)
            if round_ == 2:
                gone = trained[0][0]
                (tmp_path / "ids").write_text(f"{gone}\n")
                assert fedtwin("consent", "withdraw", directory.root, "--file", tmp_path / "ids", "--yes") == 0
    finally:
        installed.journal.close()
    assert trained[0] == trained[1]
    assert trained[2] == trained[0][1:]
    state = read_ledger(directory.ledger)
    assert state is not None
    # What the ledger says of each round's cohort is of the patients who were in it.
    commitments = CohortCommitments((directory.ledger / KEY_FILE).read_bytes())
    cohort = load_cohort(directory, world.study, "north")
    everybody = {*cohort.train.patients, *cohort.test.patients}
    for round_, kept in ((1, everybody), (2, everybody), (3, everybody - {gone})):
        commitments.remember(world.study.digest, keep_patients(cohort, kept))
        task = TaskKey(study=world.study.digest, run=RUN, round=round_, attempt=1, task=Task.TRAIN)
        assert state.rounds[f"{world.study.digest}/{RUN}/{round_}"] == commitments.find(task).cohort
    # One cohort digest for each round, another each time, whether or not anybody left.
    assert len(state.rounds) == len(set(state.rounds.values())) == 3
    # Every task was charged alike: neither price nor blocks depend on who is left.
    assert len({(task.reserve.price, task.reserve.blocks, task.reserve.uses) for task in state.tasks.values()}) == 1
    capsys.readouterr()
    assert fedtwin("consent", "list", directory.root, "--file", tmp_path / "ids") == 0
    shown = capsys.readouterr().out
    assert "in cohorts from the next round on: no" in shown
    assert [line.split("round ")[1] for line in shown.splitlines() if "may be in" in line] == ["1, train", "2, train"]
    said = shown + caplog.text
    assert not any(patient in said for patient in itertools.chain.from_iterable(trained))


def test_a_real_hospital_without_readable_consents_refuses(directory: HospitalDirectory, world: World) -> None:
    store = ConsentStore(directory.consent)
    store.add([("patient-1", REFUSAL)])
    shutil.rmtree(directory.consent / KEYS)
    installed = open_installation(directory)
    model = initialise(world.study)
    plan = RoundPlan(
        study=world.study.digest, run=RUN, round=1, attempt=1, task=Task.TRAIN, model=digest_parameters(model)
    )
    _, arrays, *_ = installed.hospital.answer(sign_round_plan(plan, world.coordinator), model)
    assert not arrays
    assert installed.journal.charged(world.study.digest).steps == 0
    installed.journal.close()


def test_a_cohort_that_nobody_left_is_the_same_object_in_every_round(
    directory: HospitalDirectory, world: World
) -> None:
    cohort = load_cohort(directory, world.study, "north")
    store = ConsentStore(directory.consent)
    admission = ConsentingPatients(store, rule="opt-out", clock=lambda: NOW / 1000)
    assert admission.choose(key(1), cohort) is admission.choose(key(2), cohort) is cohort
    store.add([(cohort.train.patients[0], REFUSAL)])
    third = admission.choose(key(3), cohort)
    assert third is admission.choose(key(4), cohort)
    assert len(third.train) == len(cohort.train) - 1


def test_everybody_may_withdraw(directory: HospitalDirectory, world: World) -> None:
    """An empty cohort is trained like any other: noise alone, and no refusal that would tell."""
    cohort = load_cohort(directory, world.study, "north")
    ConsentStore(directory.consent).add(
        [(patient, REFUSAL) for part in (cohort.train, cohort.test) for patient in part.patients]
    )
    installed, model = open_installation(directory), initialise(world.study)
    try:
        for task, round_ in ((Task.TRAIN, 1), (Task.EVALUATE, 3)):
            plan = RoundPlan(
                study=world.study.digest,
                run=RUN,
                round=round_,
                attempt=1,
                task=task,
                model=digest_parameters(model),
            )
            _, arrays, *_ = installed.hospital.answer(sign_round_plan(plan, world.coordinator), model)
            assert arrays
    finally:
        installed.journal.close()


def test_consents_are_imported_from_fhir_and_renewed(
    directory: HospitalDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"resourceType": "Consent", "id": "c9", "status": "active", "patient": {"reference": "Patient/patient-3"}}
    (tmp_path / "one.json").write_text(json.dumps({**record, "provision": {"type": "deny"}}))
    assert fedtwin("consent", "import", directory.root, tmp_path / "one.json") == 0
    assert "kept: 1 consents" in capsys.readouterr().out
    assert fedtwin("consent", "list", directory.root) == 0
    assert "patients who said anything: 1; of these in cohorts: 0" in capsys.readouterr().out
    lines = [{**record, "provision": {"type": "permit"}}, {**record, "id": "c10", "provision": {"type": "permit"}}]
    (tmp_path / "two.ndjson").write_text("\n".join(map(json.dumps, lines)))
    assert fedtwin("consent", "import", directory.root, tmp_path / "two.ndjson") == 0
    assert fedtwin("consent", "withdraw", directory.root, "--patient", "patient-3", "--yes") == 0
    assert not judge(ConsentStore(directory.consent).decisions("patient-3"))
    assert fedtwin("consent", "renew", directory.root, "--patient", "patient-3", "--yes") == 0
    assert judge(ConsentStore(directory.consent).decisions("patient-3"))
    (tmp_path / "bad.json").write_text("{")
    assert fedtwin("consent", "import", directory.root, tmp_path / "bad.json") == 2
    assert "patient-3" not in "".join(capsys.readouterr())


def test_a_consent_that_the_gateway_takes_decides_and_is_kept_before_the_sender_is_told(tmp_path: Path) -> None:
    consents = ConsentStore(tmp_path / "consent")
    keeper = StoreKeeper(lambda check: open_store(tmp_path / "store", check=check), keep_consents=consents.take)
    device = make_device("records", b"secret")
    registry = tmp_path / "devices.json"
    write_registry(registry, add_device(Registry(devices={}), device))
    gateway = Gateway(registry, keeper, clock=lambda: NOW)
    refusal = fhir(**provision(type="deny"))
    assert gateway.take(device, Draft().readings(), [refusal]).records == 1
    keeper.close()
    assert not judge(consents.decisions("p1"))

    def fail(records: Sequence[ConsentRecord]) -> None:
        raise StoreError(expected="a disk that writes", found="none")

    keeper = StoreKeeper(lambda check: open_store(tmp_path / "store", check=check), keep_consents=fail)
    receipt = Gateway(registry, keeper, clock=lambda: NOW).take(device, Draft().readings(), [refusal])
    assert receipt.refused
    keeper.close()


def test_the_statement_says_what_can_and_what_cannot_be_undone(capsys: pytest.CaptureFixture[str]) -> None:
    assert fedtwin("consent", "statement") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("From the next round", "cannot undo", "stays charged", "stay as they are", "Erasure is"):
        assert words in shown
