"""Limits of a year and of a lifetime: what blocks spent in a time, and that a charge beyond a limit is not written."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import read_directory
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import begin_ledger
from fedtwin_client.installation import open_installation
from fedtwin_client.journal import MemoryJournal, Spend, TaskKey
from fedtwin_client.ledger_journal import read_ledger
from fedtwin_client.policy_signature import sign_policy
from fedtwin_client.spending_limits import YEAR, LimitedJournal, SpendingLimits, cost_blocks, parts_of, spent_since
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.blocks import NOTHING, dominates
from fedtwin_shared.ledger.entry import Part
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.mechanism import Gaussian, NotPrivate, Use
from fedtwin_shared.ledger.study_programme import TEST, TRAIN, StudyProgramme
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import Refusal, RefusalCode, RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from tests.client.premises import make_premises, write_study
from tests.client.setting import POLICY, RUN
from tests.shared.ledger.book import DELTA, STUDY_A, STUDY_B, Book, gaussian, opened, task_key
from tests.world import make_world

STEP, HISTOGRAM = gaussian("20", 1), gaussian("30", 1)
PROGRAMME = StudyProgramme(
    plan="0" * 64,
    training=STEP.mechanism,
    evaluation=HISTOGRAM.mechanism,
    parts=(
        Part(name=TEST, programme=(gaussian("30", 50),)),
        Part(name=TRAIN, programme=(gaussian("20", 50),)),
    ),
)
WIDE = SpendingLimits(year=Decimal(1000), lifetime=Decimal(1000))


def enrol(book: Book, study: str) -> None:
    book.enrol(study, **{part.name: part.programme for part in PROGRAMME.parts})


def blocks_of(book: Book, study: str, part: str) -> list[str]:
    number = book.state.studies[study].number
    return [name for name, block in book.state.blocks.items() if block.part_of(number) == part]


def train(book: Book, study: str, round_: int, *, family: str = "") -> None:
    blocks = [name for name in blocks_of(book, study, TRAIN) if name.startswith(family)]
    book.reserve(study, STEP, blocks=blocks, round_=round_)


def evaluate(book: Book, study: str, round_: int) -> None:
    book.reserve(study, HISTOGRAM, blocks=blocks_of(book, study, TEST), round_=round_, task="evaluate")


def test_without_a_limit_of_time_it_is_what_every_block_spent() -> None:
    book = opened()
    enrol(book, STUDY_A)
    train(book, STUDY_A, 1)
    enrol(book, STUDY_B)
    train(book, STUDY_B, 1)
    evaluate(book, STUDY_A, 1)
    found = spent_since(book.state, 0)
    assert found == {name: block.spent for name, block in book.state.blocks.items()}


def test_what_is_older_than_the_time_does_not_count() -> None:
    book = opened()
    enrol(book, STUDY_A)
    train(book, STUDY_A, 1)
    first = book.state.time
    train(book, STUDY_A, 2)
    train(book, STUDY_A, 3)
    name = "0/1.train"
    three = book.state.blocks[name].spent
    assert spent_since(book.state, first - 1)[name] == three
    two = spent_since(book.state, first)[name]
    assert [3 * nano for nano in two] == [2 * nano for nano in three]
    assert spent_since(book.state, book.state.time)[name] == NOTHING


def test_an_aborted_reservation_does_not_count() -> None:
    book = opened()
    enrol(book, STUDY_A)
    train(book, STUDY_A, 1)
    book.abort(task_key(STUDY_A))
    assert spent_since(book.state, 0)["0/1.train"] == NOTHING


def random_book(seed: int) -> Book:
    """Return a ledger of random enrolments, charges, aborts, closures and admission epochs."""
    draw, book, round_ = random.Random(seed), opened(), 0
    waiting = [f"{number:064x}" for number in range(4)]
    for _ in range(draw.randint(1, 25)):
        open_studies = [name for name, account in book.state.studies.items() if not account.closed]
        action = draw.choice(["enrol", "train", "train", "train", "evaluate", "abort", "close", "epoch"])
        study = draw.choice(open_studies) if open_studies else None
        round_ += 1
        if action == "enrol" and waiting and len(open_studies) < 3:
            enrol(book, waiting.pop())
        elif action == "epoch" and book.state.epochs < 3:
            book.epoch(book.state.epochs)
        elif study is None:
            continue
        elif action == "train":
            train(book, study, round_, family=draw.choice(["", "0/", "r/"]))
        elif action == "evaluate":
            evaluate(book, study, round_)
        elif action == "abort":
            train(book, study, round_)
            if draw.random() < 0.5 and waiting:
                enrol(book, waiting.pop())
            book.abort(task_key(study, round_))
        elif action == "close":
            book.close(study)
    return book


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_it_is_never_less_than_what_any_patient_spent(seed: int) -> None:
    state = random_book(seed).state
    found = spent_since(state, 0)
    for name, block in state.blocks.items():
        assert dominates(found[name], block.spent), name


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.integers(0, 60))
def test_a_longer_time_never_counts_less(seed: int, one: int, other: int) -> None:
    state = random_book(seed).state
    early, late = sorted((state.time - one, state.time - other))
    more, less = spent_since(state, early), spent_since(state, late)
    assert all(dominates(more[name], less[name]) for name in state.blocks)


def test_a_cost_is_the_odometers_after_what_is_asked() -> None:
    book = opened()
    enrol(book, STUDY_A)
    train(book, STUDY_A, 1)
    state, order = book.state, book.state.in_force.order
    two = tuple(2 * nano for nano in state.blocks["0/1.train"].spent)
    costs = cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=state.time)
    assert costs is not None
    (cost,) = (one for one in costs if one.block == "0/1.train")
    assert cost.year == read_odometer(two, order=order, delta=DELTA)
    assert cost.lifetime == cost.year
    later = cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=state.time + YEAR)
    assert later is not None
    (cost_later,) = (one for one in later if one.block == "0/1.train")
    assert cost_later.year < cost.year
    assert cost_later.lifetime == cost.lifetime
    assert {one.block.rpartition(".")[2] for one in costs} == {"train"}


def test_a_study_that_is_not_enrolled_may_be_for_everybody_and_noise_is_needed() -> None:
    book = opened()
    enrol(book, STUDY_A)
    costs = cost_blocks(book.state, STUDY_B, {TRAIN: (STEP,)}, now=0)
    assert costs is not None
    assert {cost.block for cost in costs} == set(book.state.blocks)
    assert cost_blocks(book.state, STUDY_B, {TRAIN: (Use(mechanism=NotPrivate(), count=1),)}, now=0) is None


def limited(state: LedgerState, limits: SpendingLimits, *, now: float) -> tuple[LimitedJournal, MemoryJournal]:
    inner = MemoryJournal()
    journal = LimitedJournal(
        inner, limits=limits, read_state=lambda: state, find_programme=lambda study: PROGRAMME, clock=lambda: now
    )
    return journal, inner


KEY = TaskKey(study=STUDY_A, run=RUN, round=9, attempt=1, task=Task.TRAIN)
MANY = Spend(steps=1000, releases=1000)


@pytest.fixture(scope="module")
def state() -> LedgerState:
    """Return a ledger after eight steps of study A."""
    book = opened()
    enrol(book, STUDY_A)
    for round_ in range(1, 9):
        train(book, STUDY_A, round_)
    return book.state


def test_a_charge_beyond_a_limit_is_refused_and_not_written(state: LedgerState) -> None:
    costs = cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=state.time)
    assert costs is not None
    year, lifetime = max(cost.year for cost in costs), max(cost.lifetime for cost in costs)
    tiny = Decimal("1e-9")
    for limits, refusal in (
        (SpendingLimits(year=year, lifetime=lifetime), None),
        (SpendingLimits(year=year - tiny, lifetime=lifetime), RefusalCode.BUDGET_SPENT),
        (SpendingLimits(year=year, lifetime=lifetime - tiny), RefusalCode.BUDGET_SPENT),
    ):
        journal, inner = limited(state, limits, now=state.time)
        assert journal.charge(KEY, Spend(steps=1), limit=MANY) is refusal
        assert inner.charged(STUDY_A) == Spend(steps=1 if refusal is None else 0)


def test_a_year_later_there_is_room_again_and_a_lifetime_stays_spent(state: LedgerState) -> None:
    costs = cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=state.time)
    assert costs is not None
    year = max(cost.year for cost in costs) - Decimal("1e-9")
    limits = replace(WIDE, year=year)
    journal, _ = limited(state, limits, now=state.time)
    assert journal.charge(KEY, Spend(steps=1), limit=MANY) is RefusalCode.BUDGET_SPENT
    journal, _ = limited(state, limits, now=state.time + YEAR)
    assert journal.charge(KEY, Spend(steps=1), limit=MANY) is None
    lifetime = max(cost.lifetime for cost in costs) - Decimal("1e-9")
    journal, _ = limited(state, replace(WIDE, lifetime=lifetime), now=state.time + 10 * YEAR)
    assert journal.charge(KEY, Spend(steps=1), limit=MANY) is RefusalCode.BUDGET_SPENT


def test_a_clock_that_was_set_back_frees_nothing(state: LedgerState) -> None:
    costs = cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=0)
    assert costs == cost_blocks(state, STUDY_A, {TRAIN: (STEP,)}, now=state.time)


def test_the_patients_of_the_other_part_are_not_asked(state: LedgerState) -> None:
    limits = replace(WIDE, lifetime=Decimal("0.000000001"))
    journal, _ = limited(state, limits, now=state.time)
    assert journal.charge(KEY, Spend(steps=1), limit=MANY) is RefusalCode.BUDGET_SPENT
    cheap = cost_blocks(state, STUDY_A, parts_of(PROGRAMME, Spend(releases=1)), now=state.time)
    assert cheap is not None
    assert {cost.block for cost in cheap} == {"0/1.test", "r/1.test"}


def test_the_limits_are_the_policys() -> None:
    assert SpendingLimits.of(POLICY) == SpendingLimits(year=Decimal(16), lifetime=Decimal(24))


def test_gaussian_steps_have_the_price_that_the_tests_assume() -> None:
    assert STEP.mechanism == Gaussian(noise_multiplier=Decimal(20))


def test_a_real_hospital_stops_within_a_study_when_the_year_is_spent(tmp_path: Path) -> None:
    """The plan costs less than 2.7 by itself; the odometer, true whatever is asked later, passes it before the end."""
    world = make_world(
        training={"rounds": 8, "learning_rate": 1.0, "minimum_sites": 2},
        privacy={"epsilon": 2.7, "delta": 1e-5, "noise_multiplier": 4.8},
        evaluation={"noise_multiplier": 4.0},
    )
    directory = make_premises(tmp_path / "north", world)
    text = re.sub(r"^(maximum_epsilon\w*) = .*", r"\1 = 2.7", directory.config_file.read_text(), flags=re.MULTILINE)
    directory.config_file.write_text(text)
    directory = read_directory(directory.root)
    gate = open_gate(directory)
    sign_policy(directory, gate)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    begin_ledger(directory, gate, epsilon=Decimal(20), delta=DELTA)
    installed = open_installation(directory)
    model, answers = initialise(world.study), []
    try:
        for round_ in range(1, 9):
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
            answers.append(
                verify_answer(envelope, arrays, plan=signed, task=Task.TRAIN, study=world.study, roster=world.roster)
            )
    finally:
        installed.journal.close()
    assert isinstance(answers[0], SiteUpdate)
    assert isinstance(answers[-1], Refusal)
    assert answers[-1].code is RefusalCode.BUDGET_SPENT
    state = read_ledger(directory.ledger)
    assert state is not None
    spent = [read_odometer(block.spent, order=state.in_force.order, delta=DELTA) for block in state.blocks.values()]
    assert max(spent) <= Decimal("2.7")
