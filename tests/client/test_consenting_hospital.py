"""A real hospital asks for consent before every round, and neither its messages nor its ledger tell."""

import itertools
import json
import shutil
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fedtwin_client.admission import ConsentingPatients
from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.cohort import keep_patients
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.consent_store import KEYS, ConsentStore
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import KEY_FILE, CohortCommitments, begin_ledger
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
from tests.client.premises import make_premises, write_study
from tests.client.setting import RUN
from tests.client.test_consent import NOW, fhir, provision
from tests.client.test_consent_store import REFUSAL, judge, key
from tests.world import World, make_world


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
