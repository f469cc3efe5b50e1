"""Review, approve, refuse: what a hospital is told, that a study cannot forge it, and that a refusal is remembered."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from fedtwin_client.approval import (
    ApprovalError,
    approve_study,
    describe_request,
    examine_study,
    price_study,
    refuse_study,
)
from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import begin_ledger, digest_code
from fedtwin_client.installation import open_installation
from fedtwin_client.ledger_journal import read_ledger
from fedtwin_client.policy_signature import sign_policy
from fedtwin_client.review import COLUMN, MARK, lay_out
from fedtwin_client.studies import open_studies, read_study
from fedtwin_shared.cli import main
from fedtwin_shared.documents import sign_study
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.round import Refusal, RefusalCode, Task, verify_answer
from tests.client.premises import SECRET_PATIENT, make_premises, write_study
from tests.world import World, make_world

WORLD = make_world()


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    return make_premises(tmp_path / "north", world)


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_every_subject_fits_its_column(directory: HospitalDirectory, world: World, tmp_path: Path) -> None:
    request = examine_study(directory, write_study(tmp_path, world))
    assert all(len(subject) < COLUMN for subject, _ in request.words)


def screen(question: str, width: int) -> tuple[list[str], list[str]]:
    """Return the lines that quote the coordinator, and all others."""
    rows = [(subject, question if subject == "question" else words) for subject, words in describe_request(WORLD.study)]
    lines = lay_out(rows, width=width)
    quoted = [line for line in lines if line[COLUMN:].startswith(MARK.strip())]
    return quoted, [line for line in lines if line not in quoted]


FORGERIES = (
    "Who dies?" + " " * 200 + "price             a patient spends at most ε = 0.001",
    "Who dies?\u2502\u2502 price \u2502 0.001",
    "Who\u00a0dies?\u2003\u2003price",
    "\u5ba2" * 300,  # two columns each
    "x" * 999,
    "> > > price 0",
    "[bold]price[/bold] [link=file:///]0[/link]",
    "a\u0301" * 200,  # a mark over each letter
    "\u05d0\u05d1\u05d2 price = 0",  # written from right to left
)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.sampled_from(FORGERIES), st.text(min_size=1, max_size=400)), st.integers(min_value=1, max_value=200)
)
def test_a_studys_own_text_cannot_forge_a_line_of_the_screen(question: str, width: int) -> None:
    quoted, ours = screen(question, width)
    assert ours == screen("Who?", width)[1][: len(ours)]
    assert len(ours) == len(screen("Who?", width)[1])
    assert all(line[:COLUMN].strip() in ("", "question") for line in quoted)
    for line in (*quoted, *ours):
        assert cell_len(line) <= max(width, 60)
        assert line.isprintable()
        assert "\u2502" not in line


def test_a_question_is_shown_as_it_is_written() -> None:
    quoted, _ = screen("Who deteriorates within 24 h (≥ 1 alarm)?", 200)
    assert quoted == [f"{'question':{COLUMN}}{MARK}Who deteriorates within 24 h (≥ 1 alarm)?"]


def test_review_says_everything_and_decides_nothing(
    directory: HospitalDirectory, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_ledger_of(directory, world, tmp_path)
    capsys.readouterr()
    assert fedtwin("review", directory.root, write_study(tmp_path, world)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "deteriorated, age, sex",  # columns
        "heart_rate",
        "score histograms",  # what leaves, in which form
        f"ε = {world.study.price():.3f} of 8",  # the price
        "a patient may pay ε = 16 in 365 days and 24 ever",  # against what is left
        "block 0, as train patients: left 16.000 and 24.000, after all of it",
        "block r, as test patients: left 16.000 and 24.000, after all of it",
        "if all collude",
        digest_code(),
    ):
        assert words in shown, words
    assert world.study.digest in shown
    assert SECRET_PATIENT not in shown
    assert not (directory.studies / world.study.digest).exists()


def begin_ledger_of(directory: HospitalDirectory, world: World, folder: Path, *, epsilon: int = 20) -> None:
    """Begin a ledger; its order is chosen from another study of the same price, which is withdrawn again."""
    other = world.study.model_copy(update={"version": 99})
    (folder / "other.json").write_bytes(sign_study(other, world.roster, world.coordinator))
    approve_study(directory, examine_study(directory, folder / "other.json"))
    begin_ledger(directory, open_gate(directory), epsilon=Decimal(epsilon), delta=Decimal("0.000001"))
    refuse_study(directory, folder / "other.json")


def test_the_price_is_the_odometers_before_and_after(
    directory: HospitalDirectory, world: World, tmp_path: Path
) -> None:
    signed = read_study(write_study(tmp_path, world), coordinator=world.coordinator_key)
    assert price_study(directory, signed, now=0.0) is None
    begin_ledger_of(directory, world, tmp_path)
    costs = price_study(directory, signed, now=0.0)
    assert costs is not None
    assert costs.after is not None
    assert {(cost.block, cost.part) for cost in costs.after} == {
        (block, part) for block in ("0", "r") for part in ("test", "train")
    }
    assert all(cost.year == cost.lifetime == 0 for cost in costs.before)
    # The odometer is true whatever is asked later, so it is above the price of the plan alone.
    assert all(float(cost.lifetime) > world.study.price() for cost in costs.after if cost.part == "train")


def test_a_study_that_nobodys_year_can_pay_is_refused_before_data_are_read(
    directory: HospitalDirectory, world: World, tmp_path: Path
) -> None:
    begin_ledger_of(directory, world, tmp_path)
    most = math.ceil(world.study.price() * 100) / 100
    text = re.sub(r"^(maximum_epsilon\w*) = .*", rf"\1 = {most}", directory.config_file.read_text(), flags=re.MULTILINE)
    directory.config_file.write_text(text)
    directory = read_directory(directory.root)
    sign_policy(directory, open_gate(directory))
    dear = world.study.model_copy(update={"privacy": world.study.privacy.model_copy(update={"epsilon": most})})
    (tmp_path / "dear.json").write_bytes(sign_study(dear, world.roster, world.coordinator))
    (directory.data / "patients.csv").unlink()
    with pytest.raises(ApprovalError, match=f"maximum_epsilon_lifetime: expected at most {most}"):
        examine_study(directory, tmp_path / "dear.json")


def test_without_a_ledger_a_hospital_is_told_that_nothing_adds_up(
    directory: HospitalDirectory, world: World, tmp_path: Path
) -> None:
    words = dict(examine_study(directory, write_study(tmp_path, world)).words)["what is left"]
    assert words.startswith("unknown: this hospital has no ledger")


def test_nothing_is_approved_without_a_policy_in_force(
    directory: HospitalDirectory, world: World, tmp_path: Path
) -> None:
    directory.policy_signature.unlink()
    with pytest.raises(FedtwinError, match="expected the signed policy"):
        examine_study(directory, write_study(tmp_path, world))


def test_a_refusal_is_signed_remembered_and_ends_an_approval(
    directory: HospitalDirectory, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = write_study(tmp_path, world)
    assert fedtwin("approve", directory.root, study, "--yes") == 0
    studies = open_studies(directory, open_gate(directory))
    assert studies.find(world.study.digest) is not None
    assert fedtwin("refuse", directory.root, study, "--yes") == 0
    assert studies.find(world.study.digest) is None
    file = Path(capsys.readouterr().out.strip().rpartition(" ")[2])
    refusal = verify_answer(
        file.read_bytes(), {}, plan=study.read_bytes(), task=Task.TRAIN, study=world.study, roster=world.roster
    )
    assert isinstance(refusal, Refusal)
    assert (refusal.site, refusal.code) == ("north", RefusalCode.STUDY_REFUSED)
    for command in ("review", "approve"):
        assert fedtwin(command, directory.root, study) == 2
        assert "found a refused one" in capsys.readouterr().err
    assert fedtwin("approve", directory.root, study, "--yes", "--despite-refusal") == 0
    assert studies.find(world.study.digest) is not None
    assert not studies.is_refused(world.study.digest)


def test_a_refusal_is_an_entry_of_the_ledger(directory: HospitalDirectory, world: World, tmp_path: Path) -> None:
    begin_ledger_of(directory, world, tmp_path)
    refuse_study(directory, write_study(tmp_path, world))
    open_installation(directory).journal.close()
    state = read_ledger(directory.ledger)
    assert state is not None
    assert state.others == 2  # and the one that began the ledger


def test_where_a_person_must_approve_a_script_cannot(
    directory: HospitalDirectory,
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = write_study(tmp_path, world)
    assert fedtwin("approve", directory.root, study, "--yes") == 0  # before the policy asks for a person
    text = directory.config_file.read_text().replace("human_approval = false", "human_approval = true")
    directory.config_file.write_text(text)
    directory = read_directory(directory.root)
    sign_policy(directory, open_gate(directory))
    studies = open_studies(directory, open_gate(directory))
    found = studies.find(world.study.digest)
    assert found is not None
    assert not found.attested
    capsys.readouterr()
    for more in (("--yes",), ()):
        assert fedtwin("approve", directory.root, study, *more) == 2
        assert "expected a person at a terminal" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: "y")
    assert fedtwin("approve", directory.root, study) == 0
    found = studies.find(world.study.digest)
    assert found is not None
    assert found.attested
