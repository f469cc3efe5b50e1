"""The past of a ledger: what it tells always adds up to what the ledger says now."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.ledger.account import PLACES, TransitionError
from fedtwin_shared.ledger.spending_history import MOST_POINTS, SpendingHistory, trace_history
from fedtwin_shared.signing import digest
from tests.shared.ledger.book import STUDY_A, STUDY_B, TRAIN_A, TRAIN_B, Book, opened, sampled, task_key

STEP_A, STEP_B = sampled("0.05", "1", 1), sampled("0.02", "0.8", 1)


def assert_it_adds_up(history: SpendingHistory) -> None:
    """What is told of every block is what the state says of it."""
    state = history.state
    assert history.blocks.keys() == state.blocks.keys()
    for name, told in history.blocks.items():
        assert sum(told.by_study.values()) == state.spent(name)
        last = told.points[-1].spent if told.points else (0,) * len(state.blocks[name].spent)
        if told.points or any(state.blocks[name].spent):
            at = PLACES[state.in_force.order]
            assert last[at] == state.spent(name)


def test_a_block_of_both_studies_tells_them_apart() -> None:
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    book.reserve(STUDY_A, sampled("0.05", "1", 50), blocks=["0/1.all"])
    book.enrol(STUDY_B, all=[TRAIN_B])
    book.reserve(STUDY_B, sampled("0.02", "0.8", 50), blocks=["0/1.all/2.all", "0/2.all"])
    history = trace_history(book.written)
    assert_it_adds_up(history)
    both, before = history.blocks["0/1.all/2.all"], history.blocks["0/1.all"]
    assert both.by_study.keys() == {STUDY_A, STUDY_B}
    assert both.points[:1] == before.points
    assert len(both.points) == 2
    assert history.blocks["0"].points == ()


def test_a_refund_is_told_and_one_that_was_too_late_is_not() -> None:
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    for round_ in (1, 2):
        book.reserve(STUDY_A, STEP_A, blocks=["0/1.all"], round_=round_)
    book.abort(task_key(STUDY_A, 1))
    book.enrol(STUDY_B, all=[TRAIN_B])
    book.abort(task_key(STUDY_A, 2))
    history = trace_history(book.written)
    assert_it_adds_up(history)
    at = PLACES[history.state.in_force.order]
    told = [point.spent[at] for point in history.blocks["0/1.all"].points]
    assert told == [told[0], 2 * told[0], told[0]]


def test_the_words_beside_the_numbers_are_kept() -> None:
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    book.refuse()
    book.conform()
    book.policy(site_policy=digest(b"another"))
    book.write(book.claim("9"))
    book.reserve(STUDY_A, STEP_A, blocks=["0/1.all"])
    book.start(task_key(STUDY_A))
    book.seal(task_key(STUDY_A))
    history = trace_history(book.written)
    assert history.refusals == {"budget-spent": 1}
    assert [one.outcome for one in history.conformance] == ["passed"]
    assert [one for one, _ in history.site_policies] == [digest(b"site policy"), digest(b"another")]
    assert [(claimed.entry, str(claimed.epsilon)) for claimed in history.claims] == [(0, "8"), (6, "9")]
    assert [use.answers for use in history.codes.values()] == [1]
    assert history.kinds["policy"] == 2
    assert len(history.times) == len(book.written)


def test_a_long_past_is_thinned_and_its_end_is_kept() -> None:
    book = opened()
    use = sampled("0.001", "20", 1)
    book.enrol(STUDY_A, all=[sampled("0.001", "20", 1000)])
    for round_ in range(1, 300):
        book.reserve(STUDY_A, use, blocks=["0/1.all"], round_=round_)
    history = trace_history(book.written)
    assert_it_adds_up(history)
    assert len(history.blocks["0/1.all"].points) <= MOST_POINTS


ACTIONS = st.lists(st.sampled_from(["A", "B", "enrol", "close", "epoch", "abort"]), max_size=14)


@settings(max_examples=25, deadline=None)
@given(actions=ACTIONS)
def test_what_is_told_adds_up_whatever_happened(actions: list[str]) -> None:
    assert_it_adds_up(trace_history(act(actions).written))


def act(actions: list[str]) -> Book:
    """A ledger in which these things were tried, in order; what is not allowed is not written."""
    book = opened()
    book.enrol(STUDY_A, all=[TRAIN_A])
    for number, action in enumerate(actions, start=1):
        study, use = (STUDY_A, STEP_A) if action == "A" else (STUDY_B, STEP_B)
        try:
            match action:
                case "enrol":
                    book.enrol(STUDY_B, all=[TRAIN_B])
                case "close":
                    book.close(STUDY_A)
                case "epoch":
                    book.epoch(book.state.epochs)
                case "abort":
                    book.abort(["", *book.state.tasks][-1])
                case _:
                    members = book.state.members(study) if study in book.state.studies else ("0",)
                    book.reserve(study, use, blocks=members[:: 1 + number % 2], round_=number)
        except TransitionError:
            continue
    return book


def test_a_history_that_does_not_replay_is_refused_as_ever() -> None:
    written = act(["A"]).written
    with pytest.raises(FedtwinError):
        trace_history([*written, written[-1]])
