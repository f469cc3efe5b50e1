"""A hospital that began a ledger charges a lifetime: from the first command to what an auditor reads."""

from __future__ import annotations

import json
import shutil
import stat
from decimal import Decimal
from pathlib import Path

import pytest

from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.file_journal import FileJournal
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import (
    KEY_FILE,
    CohortCommitments,
    begin_ledger,
    describe_lifetime,
    digest_code,
    read_totals,
)
from fedtwin_client.installation import load_cohort, open_installation
from fedtwin_client.journal import JournalError, Spend, TaskKey
from fedtwin_client.ledger_journal import LEDGER, read_ledger
from fedtwin_client.ledger_mark import MARK_FILE
from fedtwin_shared.cli import main
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger.account import Phase
from fedtwin_shared.ledger.second_opinion import verify_prices
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import Refusal, RefusalCode, RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from tests.client.premises import SECRET_PATIENT, make_premises, write_study
from tests.client.setting import RUN
from tests.world import World, make_world

EPSILON, DELTA = Decimal(8), Decimal("0.000001")


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    return directory


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


def begin(directory: HospitalDirectory) -> None:
    begin_ledger(directory, open_gate(directory), epsilon=EPSILON, delta=DELTA)


def plan_of(world: World, *, task: Task = Task.TRAIN, round_: int = 1, attempt: int = 1) -> bytes:
    model = digest_parameters(initialise(world.study))
    plan = RoundPlan(study=world.study.digest, run=RUN, round=round_, attempt=attempt, task=task, model=model)
    return sign_round_plan(plan, world.coordinator)


def test_a_hospitals_node_charges_its_ledger(directory: HospitalDirectory, world: World) -> None:
    begin(directory)
    installed = open_installation(directory)
    try:
        for task, round_ in ((Task.TRAIN, 1), (Task.TRAIN, 2), (Task.EVALUATE, 3)):
            plan = plan_of(world, task=task, round_=round_)
            envelope, arrays, _ = installed.hospital.answer(plan, initialise(world.study))
            answer = verify_answer(envelope, arrays, plan=plan, task=task, study=world.study, roster=world.roster)
            assert isinstance(answer, SiteUpdate)
            assert installed.hospital.answer(plan, initialise(world.study))[0] == envelope
        assert read_totals(directory) == {world.study.digest: Spend(steps=2, releases=1)}
    finally:
        installed.journal.close()
    assert not directory.journal.exists()
    state = read_ledger(directory.ledger)
    assert state is not None
    verify_prices(state)
    assert [task.phase for task in state.tasks.values()] == [Phase.RELEASED] * 3
    assert state.spent("0/1.train") > 0 < state.spent("0/1.test")
    assert state.spent("0") == 0
    with LogReader(directory.ledger / LEDGER) as log:
        assert not any(SECRET_PATIENT.encode() in data for data in log.entries())


def test_a_study_that_would_exceed_the_lifetime_is_refused(directory: HospitalDirectory, world: World) -> None:
    begin_ledger(directory, open_gate(directory), epsilon=Decimal(2), delta=DELTA)
    lifetime = describe_lifetime(directory, open_gate(directory))
    assert lifetime is not None
    train = [price for price in lifetime.prices[world.study.digest] if price.part == "train"]
    assert not any(price.affordable for price in train)
    installed = open_installation(directory)
    plan = plan_of(world)
    envelope, arrays, _ = installed.hospital.answer(plan, initialise(world.study))
    installed.journal.close()
    answer = verify_answer(envelope, arrays, plan=plan, task=Task.TRAIN, study=world.study, roster=world.roster)
    assert isinstance(answer, Refusal)
    assert answer.code is RefusalCode.BUDGET_SPENT
    state = read_ledger(directory.ledger)
    assert state is not None
    assert (state.tasks, state.studies) == ({}, {})


def test_without_a_ledger_nothing_changes(directory: HospitalDirectory) -> None:
    installed = open_installation(directory)
    installed.journal.close()
    assert isinstance(installed.journal, FileJournal)
    assert describe_lifetime(directory, open_gate(directory)) is None


def test_a_ledger_begins_once_and_before_anything_is_spent(directory: HospitalDirectory, world: World) -> None:
    with FileJournal(directory.journal) as journal:
        key = TaskKey(study=world.study.digest, run=RUN, round=1, attempt=1, task=Task.TRAIN)
        journal.charge(key, Spend(steps=1), limit=Spend(steps=3))
    with pytest.raises(ConfigurationError):
        begin(directory)
    shutil.rmtree(directory.journal)
    begin(directory)
    with pytest.raises(ConfigurationError):
        begin(directory)
    assert stat.S_IMODE((directory.ledger / KEY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("lost", [LEDGER, KEY_FILE])
def test_a_ledger_that_is_gone_is_no_new_budget(directory: HospitalDirectory, lost: str) -> None:
    begin(directory)
    (directory.ledger / lost).unlink()
    with pytest.raises(JournalError):
        open_installation(directory)


def test_a_ledger_whose_folder_is_gone_is_no_new_budget(
    directory: HospitalDirectory, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(directory)
    assert fedtwin("status", directory.root) == 0
    shutil.rmtree(directory.ledger)
    again = ("begin-ledger", directory.root, "--epsilon", "8", "--delta", "0.000001")
    commands: list[tuple[str | Path, ...]] = [("status", directory.root), ("check", directory.root)]
    commands += [("run", directory.root), ("checkpoint", directory.root), again]
    commands += [("refuse", directory.root, write_study(directory.root.parent, world), "--yes")]
    for command in commands:
        capsys.readouterr()
        assert fedtwin(*command) == 2, command
        assert "expected the ledger that was begun here" in capsys.readouterr().err.replace("\n", " "), command
    with pytest.raises(JournalError, match="begun here"):
        open_installation(directory)
    assert not directory.ledger.exists()


def test_a_ledger_begins_with_an_approved_study(tmp_path: Path, world: World) -> None:
    directory = make_premises(tmp_path / "north", world)
    with pytest.raises(ConfigurationError, match="expected an approved study"):
        begin(directory)
    assert not directory.ledger.exists()


def test_another_ledger_is_not_the_one_that_was_begun(tmp_path: Path, directory: HospitalDirectory) -> None:
    shutil.copytree(directory.root, tmp_path / "twin")
    begin(directory)
    twin = read_directory(tmp_path / "twin")
    begin(twin)  # with the same key, for the same lifetime
    shutil.rmtree(directory.ledger)
    shutil.copytree(twin.ledger, directory.ledger)
    with pytest.raises(JournalError, match="another"):
        open_installation(directory)
    with pytest.raises(JournalError, match="another"):
        read_totals(directory)


def test_a_ledger_from_before_marks_is_marked_when_it_opens(directory: HospitalDirectory) -> None:
    begin(directory)
    mark = directory.root / MARK_FILE
    before = mark.read_bytes()
    assert json.loads(before)["origin"] == "north/ledger"
    assert stat.S_IMODE(mark.stat().st_mode) == 0o600
    mark.unlink()
    open_installation(directory).journal.close()
    assert mark.read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff"])
def test_a_damaged_mark_opens_nothing(directory: HospitalDirectory, damage: bytes) -> None:
    begin(directory)
    (directory.root / MARK_FILE).write_bytes(damage)
    with pytest.raises(JournalError, match=MARK_FILE):
        open_installation(directory)


def test_commitments_differ_for_every_task_and_follow_the_cohort(directory: HospitalDirectory, world: World) -> None:
    one, other = CohortCommitments(b"k" * 32), CohortCommitments(b"j" * 32)
    for commitments in (one, other):
        load_cohort(directory, world.study, "north", commitments=commitments)
    key = TaskKey(study=world.study.digest, run=RUN, round=1, attempt=1, task=Task.TRAIN)
    again = TaskKey(study=world.study.digest, run=RUN, round=1, attempt=2, task=Task.TRAIN)
    assert one.find(key) == one.find(key)
    assert one.find(key).cohort == one.find(again).cohort  # one cohort for a round
    assert len({one.find(key).blocks, one.find(again).blocks, other.find(key).blocks, other.find(key).cohort}) == 4
    before = one.find(key)
    patients = directory.data / "patients.csv"
    patients.write_text("\n".join(patients.read_text().splitlines()[:-1]) + "\n")
    load_cohort(directory, world.study, "north", commitments=one)
    assert one.find(key).blocks != before.blocks


def test_the_code_has_one_digest() -> None:
    assert digest_code() == digest_code()
    assert len(digest_code()) == 64


def test_status_shows_every_block_and_the_price_of_every_study(
    directory: HospitalDirectory, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["begin-ledger", str(directory.root), "--epsilon", "8", "--delta", "0.000001"]
    assert fedtwin(*command) == 0
    installed = open_installation(directory)
    installed.hospital.answer(plan_of(world), initialise(world.study))
    installed.journal.close()
    capsys.readouterr()
    assert fedtwin("status", directory.root, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    (study,) = document["studies"]
    assert (study["steps"], study["planned_steps"]) == (1, 3)
    blocks = {row["block"]: row for row in document["lifetime"]["blocks"]}
    assert blocks.keys() == {"0", "0/1.test", "0/1.train", "r", "r/1.test", "r/1.train"}
    assert 0 < float(blocks["0/1.train"]["odometer"]) < 8
    assert 0 < float(blocks["0/1.train"]["epsilon"]) < 8
    assert float(blocks["0"]["left"]) == 1
    prices = document["lifetime"]["prices"][world.study.digest]
    assert {(price["part"], price["block"]) for price in prices} >= {("train", "0/1.train"), ("test", "0")}
    assert all(price["affordable"] for price in prices)
    assert fedtwin("status", directory.root) == 0
    assert "of a lifetime of ε 8" in capsys.readouterr().out


@pytest.mark.parametrize("epsilon", ["-1", "nan", "0", "1e3", "8.0", "99999999999"])
def test_an_epsilon_that_is_no_claim_is_refused(
    directory: HospitalDirectory, epsilon: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["begin-ledger", str(directory.root), f"--epsilon={epsilon}", "--delta", "0.000001"]
    assert fedtwin(*command) != 0
    assert "Traceback" not in capsys.readouterr().err
    assert not (directory.ledger / KEY_FILE).exists()
    begin(directory)  # and a good claim is possible afterwards
