"""What was spent stays visible: of approved, withdrawn and damaged studies, also while the hospital runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.file_journal import FileJournal
from fedtwin_client.journal import Spend, TaskKey
from fedtwin_client.spending import describe_spending
from fedtwin_client.studies import ATTESTATION_FILE, STUDY_FILE
from fedtwin_shared.round import Task
from tests.client.premises import make_premises, write_study
from tests.client.setting import RUN
from tests.world import World, make_world


def approved(path: Path, world: World) -> HospitalDirectory:
    directory = make_premises(path / "north", world)
    approve_study(directory, examine_study(directory, write_study(path, world)))
    return directory


def spend(journal: FileJournal, study: str, *, round_: int, task: Task, amount: Spend) -> None:
    key = TaskKey(study=study, run=RUN, round=round_, attempt=1, task=task)
    assert journal.charge(key, amount, limit=Spend(steps=100, releases=100)) is None


def test_spending_is_shown_while_the_hospital_runs(tmp_path: Path) -> None:
    world = make_world()
    directory, study = approved(tmp_path, world), world.study
    (before,) = describe_spending(directory)
    assert (before.state, before.steps, before.planned_steps, before.epsilon) == ("approved", 0, 3, 0.0)
    with FileJournal(directory.journal) as journal:
        spend(journal, study.digest, round_=1, task=Task.TRAIN, amount=Spend(steps=1))
        spend(journal, study.digest, round_=2, task=Task.TRAIN, amount=Spend(steps=1))
        (after,) = describe_spending(directory)
    assert (after.steps, after.releases, after.planned_releases) == (2, 0, 1)
    assert after.epsilon == pytest.approx(study.spent(steps=2, releases=0))
    assert after.price == pytest.approx(study.price())
    assert after.epsilon is not None
    assert 0 < after.epsilon < study.price()


def test_a_withdrawn_studys_spending_stays_visible(tmp_path: Path) -> None:
    world = make_world()
    directory = approved(tmp_path, world)
    with FileJournal(directory.journal) as journal:
        spend(journal, world.study.digest, round_=1, task=Task.TRAIN, amount=Spend(steps=1))
    shutil.rmtree(directory.studies / world.study.digest)
    (row,) = describe_spending(directory)
    assert (row.digest, row.state, row.steps, row.name) == (world.study.digest, "withdrawn", 1, None)


def test_a_damaged_or_unattested_study_is_called_so(tmp_path: Path) -> None:
    world = make_world()
    directory = approved(tmp_path, world)
    folder = directory.studies / world.study.digest
    (folder / ATTESTATION_FILE).unlink()
    assert [row.state for row in describe_spending(directory)] == ["not attested"]
    (folder / STUDY_FILE).write_bytes(b"{}")
    assert [row.state for row in describe_spending(directory)] == ["damaged"]


def test_status_imports_neither_torch_nor_flwr(tmp_path: Path) -> None:
    directory = approved(tmp_path, make_world())
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fedtwin_client.cli import app\n"
        "done = CliRunner().invoke(app, ['status', sys.argv[1], '--json'])\n"
        "assert done.exit_code == 0, done.output\n"
        "loaded = {'torch', 'flwr', 'opacus', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory.root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
