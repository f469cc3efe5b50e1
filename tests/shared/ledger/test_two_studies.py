"""Two studies with overlapping patients: who is in one pays one, who is in both pays the composition, nobody more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from decimal import Decimal

import dp_accounting
import pytest
from dp_accounting import dp_event, pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp

from fedtwin_shared.ledger.account import BudgetExceededError, LedgerState, TransitionError
from fedtwin_shared.ledger.blocks import dominates
from fedtwin_shared.ledger.encoding import encode_entry
from fedtwin_shared.ledger.entry import CohortDigest, Release, Reserve, Seal, Start
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.renyi import ORDERS, convert_to_epsilon, price_uses
from fedtwin_shared.ledger.state import apply, verify_history
from fedtwin_shared.signing import digest
from tests.shared.ledger.book import (
    DELTA,
    RELEASES_B,
    RUN,
    SIGNER_KEY,
    STUDY_A,
    STUDY_B,
    TRAIN_A,
    TRAIN_B,
    Book,
    opened,
    sampled,
    task_key,
)
from tests.soak import only_in_soak

ONLY_A, ONLY_B, BOTH, NEITHER = "0/1.all", "0/2.all", "0/1.all/2.all", "0"

# The same mechanisms in other people's words: A, B without releases, and B's releases.
EVENT_A = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.0)), 200
)
EVENT_B = dp_accounting.SelfComposedDpEvent(
    dp_accounting.PoissonSampledDpEvent(0.02, dp_accounting.GaussianDpEvent(0.8)), 300
)
EVENT_RELEASES = dp_accounting.ComposedDpEvent(
    [
        dp_accounting.SelfComposedDpEvent(dp_event.DiscreteLaplaceDpEvent(noise_parameter=1 / 20, sensitivity=1), 3),
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(15.0), 2),
    ]
)
# Renyi accounting of dp-accounting knows the continuous Laplace mechanism, of which the discrete one is a coarsening.
EVENT_RELEASES_RENYI = dp_accounting.ComposedDpEvent(
    [
        dp_accounting.SelfComposedDpEvent(dp_accounting.LaplaceDpEvent(20.0), 3),
        dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(15.0), 2),
    ]
)

KEPT = 1e-6 - 1e-9  # the claim's δ less the slack of real noise, at which a ledger converts


def run_both(*, releases: Sequence[Use]) -> Book:
    """Enrol both studies, run them in rounds of 50 steps, mixed, and release the statistics of B."""
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    book.enrol(STUDY_B, all=[TRAIN_B, *releases])
    for round_ in range(1, 7):
        if round_ <= 4:
            book.reserve(STUDY_A, sampled("0.05", "1", 50), blocks=[ONLY_A, BOTH], round_=round_)
        book.reserve(STUDY_B, sampled("0.02", "0.8", 50), blocks=[ONLY_B, BOTH], round_=round_)
    for number, use in enumerate(releases, start=1):
        book.reserve(STUDY_B, use, blocks=[ONLY_B, BOTH], attempt=number, task="statistics")
    return book


def epsilon_of(state: LedgerState, block: str) -> float:
    return float(convert_to_epsilon(state.spent(block), order=state.in_force.order, delta=DELTA))


def by_privacy_loss(*events: dp_accounting.DpEvent) -> float:
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(KEPT))


def by_renyi(order: int, *events: dp_accounting.DpEvent) -> float:
    accountant = rdp.RdpAccountant(orders=[order])
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(KEPT))


@pytest.fixture(scope="module")
def plain() -> LedgerState:
    return run_both(releases=()).state


@pytest.fixture(scope="module")
def released() -> LedgerState:
    return run_both(releases=RELEASES_B).state


def test_patients_pay_for_what_they_took_part_in(plain: LedgerState) -> None:
    parts = {ONLY_A: [EVENT_A], ONLY_B: [EVENT_B], BOTH: [EVENT_A, EVENT_B]}
    for block, events in parts.items():
        spent, order = epsilon_of(plain, block), plain.in_force.order
        assert spent == pytest.approx(by_renyi(order, *events), rel=1e-6)
        assert 0.75 * spent < by_privacy_loss(*events) < spent
    assert plain.spent(NEITHER) == 0
    assert plain.spent(ONLY_A) + plain.spent(ONLY_B) == plain.spent(BOTH)


def test_what_they_pay_in_figures(plain: LedgerState, released: LedgerState) -> None:
    """A: q = 0.05, σ = 1, 200 steps. B: q = 0.02, σ = 0.8, 300 steps. δ = 1e-6. Releases: `RELEASES_B`."""
    figures = {ONLY_A: (6.139, 6.139), ONLY_B: (5.241, 5.274), BOTH: (7.524, 7.557)}
    for block, (without, together) in figures.items():
        assert epsilon_of(plain, block) == pytest.approx(without, abs=1e-3)
        assert epsilon_of(released, block) == pytest.approx(together, abs=1e-3)


def test_no_order_would_have_been_better(plain: LedgerState) -> None:
    """The filter's order was fixed from the programme of both; here each block is free to choose among all."""
    for block, events in {ONLY_A: [EVENT_A], ONLY_B: [EVENT_B], BOTH: [EVENT_A, EVENT_B]}.items():
        accountant = rdp.RdpAccountant(orders=list(ORDERS))
        for event in events:
            accountant.compose(event)
        best = float(accountant.get_epsilon(KEPT))
        assert best <= epsilon_of(plain, block) <= 1.001 * best


def test_releases_are_paid_by_the_patients_of_their_study_alone(plain: LedgerState, released: LedgerState) -> None:
    assert released.spent(ONLY_A) == plain.spent(ONLY_A)
    parts = {ONLY_B: (EVENT_B,), BOTH: (EVENT_A, EVENT_B)}
    for block, events in parts.items():
        spent, order = epsilon_of(released, block), released.in_force.order
        assert spent > epsilon_of(plain, block)
        assert by_privacy_loss(*events, EVENT_RELEASES) < spent <= 8
        # The discrete mechanism on a grid of 1/20 of its scale costs almost what the continuous one does.
        assert spent == pytest.approx(by_renyi(order, *events, EVENT_RELEASES_RENYI), rel=1e-4)


def test_opacus_is_a_third_opinion(plain: LedgerState) -> None:
    curves = {
        block: sum(
            opacus_rdp.compute_rdp(q=q, noise_multiplier=noise, steps=steps, orders=list(ORDERS))
            for q, noise, steps in parts
        )
        for block, parts in {
            ONLY_A: [(0.05, 1.0, 200)],
            ONLY_B: [(0.02, 0.8, 300)],
            BOTH: [(0.05, 1.0, 200), (0.02, 0.8, 300)],
        }.items()
    }
    for block, curve in curves.items():
        for nano, nats in zip(plain.blocks[block].spent, curve, strict=True):
            assert nano == pytest.approx(nats * 1e9, rel=1e-6, abs=1000)


def test_the_odometer_holds_while_the_filter_does(released: LedgerState) -> None:
    shown = read_odometer(released.blocks[BOTH].spent, order=released.in_force.order, delta=DELTA)
    assert epsilon_of(released, BOTH) < shown < Decimal("1.2") * Decimal(epsilon_of(released, BOTH))


def test_a_third_study_is_refused_to_the_patients_of_both_and_not_to_the_others(released: LedgerState) -> None:
    book = run_both(releases=RELEASES_B)
    study = digest(b"study C")
    steps = sampled("0.05", "1", 60)
    book.enrol(study, all=[steps])
    book.cohort(study, 1)
    with pytest.raises(BudgetExceededError):
        book.write(book.reserve_entry(study, steps, blocks=[f"{ONLY_A}/3.all", f"{BOTH}/3.all"]))
    book.reserve(study, steps, blocks=[f"{ONLY_A}/3.all", "0/3.all"])


Action = tuple[str, int, int]
ACTIONS = st.lists(st.tuples(st.sampled_from(["A", "B"]), st.integers(1, 40), st.integers(0, 3)), max_size=12)


def run_actions(actions: Sequence[Action]) -> list[LedgerState]:
    """Reserve, and start, seal, release or abort; what is refused changes nothing. Returns every state."""
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    book.enrol(STUDY_B, all=[TRAIN_B])
    states = [book.state]
    for round_, (name, steps, then) in enumerate(actions, start=1):
        study, use, blocks = (
            (STUDY_A, sampled("0.05", "1", steps), [ONLY_A, BOTH])
            if name == "A"
            else (STUDY_B, sampled("0.02", "0.8", steps), [ONLY_B, BOTH])
        )
        try:
            book.reserve(study, use, blocks=blocks, round_=round_)
        except TransitionError:
            continue
        key = task_key(study, round_)
        for step in ([], [book.start], [book.start, book.seal, book.release], [book.abort])[then]:
            step(key)
        states.append(book.state)
    assert verify_history(book.written) == book.state
    return states


@settings(max_examples=15, deadline=None)
@given(actions=ACTIONS)
def test_spend_is_monotone_and_never_above_the_budget(actions: list[Action]) -> None:
    states = run_actions(actions)
    for before, after in itertools.pairwise(states):
        for name, block in after.blocks.items():
            assert dominates(block.spent, before.blocks[name].spent)
            assert after.spent(name) <= after.budget


@settings(max_examples=15, deadline=None)
@given(actions=ACTIONS)
def test_the_order_of_studies_with_other_patients_is_irrelevant(actions: list[Action]) -> None:
    """Disjoint blocks: what one study's patients spend does not depend on when the other's are charged."""
    of_a = [action for action in actions if action[0] == "A"]
    of_b = [action for action in actions if action[0] == "B"]
    first, second, mixed = (run_actions(order)[-1] for order in (of_a + of_b, of_b + of_a, actions))
    for name in (ONLY_A, ONLY_B, BOTH, NEITHER):
        if mixed.spent(BOTH) + 10**9 < mixed.budget:  # nothing was refused, which depends on who came first
            assert first.blocks[name] == second.blocks[name] == mixed.blocks[name]


@settings(max_examples=10, deadline=None)
@given(actions=ACTIONS)
def test_a_ledger_is_append_only(actions: list[Action]) -> None:
    """Every beginning of a ledger is a ledger, and an earlier state is never changed by a later entry."""
    states = run_actions(actions)
    kept = [{name: block.spent for name, block in state.blocks.items()} for state in states]
    rerun = run_actions(actions)
    assert kept == [{name: block.spent for name, block in state.blocks.items()} for state in rerun]


def many_entries(count: int) -> list[bytes]:
    """Return a ledger of about `count` entries: one study, five entries a round."""
    book = opened()
    use = sampled("0.0001", "20", 1)
    book.enrol(STUDY_A, train=[Use(mechanism=use.mechanism, count=1_000_000)])
    blocks = book.state.members(STUDY_A)
    price = (price_uses([use]) or ())[ORDERS.index(book.state.in_force.order)]
    one, other = digest(b"one"), digest(b"other")
    written, now = book.written, 1_900_000_000
    for round_ in range(count // 5):
        task, salt = task_key(STUDY_A, round_), digest(f"{round_}".encode())[:32]
        for entry in (
            CohortDigest(time=now, salt=salt, round=f"{STUDY_A}/{RUN}/{round_}", cohort=one),
            Reserve(time=now, salt=salt, task=task, blocks=blocks, uses=(use,), price=price, membership=other),
            Start(time=now, salt=salt, task=task),
            Seal(time=now, salt=salt, task=task, plan=one, output=one, code=other),
            Release(time=now, salt=salt, task=task, recipient=SIGNER_KEY, checkpoint=round_),
        ):
            written.append(encode_entry(entry))
    return written


@only_in_soak("100,000 entries")
def test_a_hundred_thousand_entries_are_verified_in_seconds() -> None:
    written = many_entries(100_000)
    start = time.process_time()
    state = verify_history(written)
    assert time.process_time() - start < 2.5
    assert state.entries == len(written)


def test_the_time_to_verify_grows_with_the_entries_and_not_faster() -> None:
    written = many_entries(4000)
    durations = []
    for part in (written[:1000], written):
        start = time.process_time()
        for _ in range(2):
            verify_history(part)
        durations.append(time.process_time() - start)
    assert durations[1] < 4 * 3 * durations[0]


def test_apply_refuses_what_a_history_refuses() -> None:
    book = opened()
    with pytest.raises(TransitionError):
        apply(book.state, Start(time=2 * 10**9, salt="0" * 32, task=task_key(STUDY_A)))
