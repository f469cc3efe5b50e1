"""The rules of a ledger: every way to refill a budget is refused, and what was spent never becomes less."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.ledger.account import BudgetExceededError, LedgerState, Phase, TransitionError
from fedtwin_shared.ledger.blocks import dominates
from fedtwin_shared.ledger.encoding import encode_entry, parse_entry
from fedtwin_shared.ledger.entry import Entry, Policy
from fedtwin_shared.ledger.mechanism import NotPrivate, Use
from fedtwin_shared.ledger.state import apply, verify_history
from fedtwin_shared.signing import digest
from tests.shared.ledger.book import STUDY_A, STUDY_B, TRAIN_A, TRAIN_B, Book, opened, sampled, task_key
from tests.shared.ledger.test_entry_form import one_of_each

STEPS = sampled("0.05", "1", 100)


def enrolled() -> Book:
    """Return a ledger with one study that may run 200 steps."""
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    return book


def assert_refused(book: Book, entry: Entry, kind: type[FedtwinError] = TransitionError) -> None:
    """Refused by the writer, which keeps its state, and by an auditor."""
    before = book.state
    with pytest.raises(kind):
        book.write(entry)
    assert book.state == before
    with pytest.raises(kind):
        verify_history([*book.written, encode_entry(entry)])


class TestEveryWayToRefillABudget:
    def test_a_block_without_a_parent(self) -> None:
        """Only an epoch makes empty blocks, and only such as no patient of an earlier epoch may enter."""
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        spent = book.state.spent("0/1.train")
        opening = parse_entry(book.written[1])
        assert_refused(book, replace(opening, time=2 * 10**9))  # the same epoch again
        book.epoch(1)
        assert book.state.spent("0/1.train") == spent
        assert book.state.spent("1/1.train") == 0

    def test_an_epoch_out_of_order(self) -> None:
        with pytest.raises(TransitionError):
            enrolled().epoch(2)

    def test_an_invented_block(self) -> None:
        book = enrolled()
        book.cohort(STUDY_A, 1)
        for name in ("7/1.train", "0/1.test", "0/2.train", "0"):
            assert_refused(book, book.reserve_entry(STUDY_A, STEPS, blocks=[name]))

    def test_a_new_policy(self) -> None:
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        spent, budget = book.state.spent("0/1.train"), book.state.budget
        book.policy(site_policy=digest(b"another site policy"))
        assert (book.state.spent("0/1.train"), book.state.budget) == (spent, budget)
        assert book.state.in_force.site_policy == digest(b"another site policy")

    @pytest.mark.parametrize(
        "change",
        [
            {"epsilon": Decimal(9)},
            {"epsilon": Decimal(7)},
            {"delta": Decimal("0.00001")},
            {"order": 5},
            {"programme": (sampled("0.5", "1", 1),)},
            {"signer": "ed25519:" + "A" * 43 + "="},
        ],
    )
    def test_a_changed_order_delta_or_claim(self, change: dict[str, object]) -> None:
        book = enrolled()
        first = parse_entry(book.written[0])
        assert isinstance(first, Policy)
        assert_refused(book, replace(first, time=2 * 10**9, **change))  # type: ignore[arg-type]  # its own fields

    def test_another_rule_unit_or_adjacency_is_no_entry(self) -> None:
        first = parse_entry(enrolled().written[0])
        assert isinstance(first, Policy)
        for change in ({"rule": "pld"}, {"unit": "record"}, {"adjacency": "replace-one"}):
            with pytest.raises(VerificationError):
                encode_entry(replace(first, **change))  # type: ignore[arg-type]  # its own fields

    def test_readmission_under_a_new_id(self) -> None:
        """Who cannot be shown to be new joins family r, which then has spent as much as anybody."""
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        spent = book.state.blocks["0/1.train"].spent
        book.epoch(1)
        for name, block in book.state.blocks.items():
            if block.family == "r":
                assert dominates(block.spent, spent), name

    def test_a_refund_after_the_start(self) -> None:
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        spent = book.state.spent("0/1.train")
        book.start(task_key(STUDY_A))
        with pytest.raises(TransitionError):
            book.abort(task_key(STUDY_A))
        book.seal(task_key(STUDY_A))
        with pytest.raises(TransitionError):
            book.abort(task_key(STUDY_A))
        book.release(task_key(STUDY_A))
        with pytest.raises(TransitionError):
            book.abort(task_key(STUDY_A))
        assert book.state.spent("0/1.train") == spent

    def test_a_refund_twice(self) -> None:
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"], attempt=2)
        book.abort(task_key(STUDY_A))
        with pytest.raises(TransitionError):
            book.abort(task_key(STUDY_A))
        assert book.state.spent("0/1.train") > 0

    def test_a_refund_after_the_blocks_changed(self) -> None:
        """Merged blocks carry a maximum: to take one charge off would take it off patients who were never charged."""
        book = enrolled()
        book.enrol(STUDY_B, train=[TRAIN_B])
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        book.reserve(STUDY_B, sampled("0.02", "0.8", 300), blocks=["0/2.train"])
        before = {name: block.spent for name, block in book.state.blocks.items()}
        book.close(STUDY_A)
        merged = book.state.blocks["0/2.train"].spent
        book.abort(task_key(STUDY_B))
        after = book.state.blocks["0/2.train"].spent
        assert after == merged
        assert dominates(after, before["0/1.train/2.train"])

    def test_a_key_used_again(self) -> None:
        book = enrolled()
        book.reserve(STUDY_A, sampled("0.05", "1", 10), blocks=["0/1.train"])
        again = book.reserve_entry(STUDY_A, sampled("0.05", "1", 1), blocks=["0/1.train"])
        assert_refused(book, again)
        book.abort(task_key(STUDY_A))
        assert_refused(book, replace(again, time=2 * 10**9))

    def test_a_merge_that_forgets_the_maximum(self) -> None:
        book = enrolled()
        book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
        spent = book.state.spent("0/1.train")
        book.close(STUDY_A)
        assert sorted(book.state.blocks) == ["0", "r"]
        assert book.state.spent("0") == spent

    def test_a_study_enrolled_again_after_it_was_closed(self) -> None:
        book = enrolled()
        book.close(STUDY_A)
        with pytest.raises(TransitionError):
            book.enrol(STUDY_A, train=[TRAIN_A])
        with pytest.raises(TransitionError):
            book.cohort(STUDY_A, 1)

    def test_a_price_that_is_not_the_mechanisms(self) -> None:
        book = enrolled()
        book.cohort(STUDY_A, 1)
        good = book.reserve_entry(STUDY_A, STEPS, blocks=["0/1.train"])
        for price in (good.price - 1, good.price + 1, 1, 2**53 - 1):
            assert_refused(book, replace(good, price=price))
        assert_refused(book, replace(good, uses=(sampled("0.05", "1.1", 100),)))

    def test_a_mechanism_without_noise(self) -> None:
        book = enrolled()
        book.cohort(STUDY_A, 1)
        free = Use(mechanism=NotPrivate())
        assert_refused(book, book.reserve_entry(STUDY_A, free, blocks=["0/1.train"]), BudgetExceededError)
        with pytest.raises(BudgetExceededError):
            book.enrol(STUDY_B, train=[free])

    def test_a_claim_nobody_signed(self) -> None:
        book = enrolled()
        assert_refused(book, book.claim("100", key=Ed25519PrivateKey.generate()))
        good = book.claim("9")
        assert_refused(book, replace(good, epsilon=Decimal(100)))
        assert_refused(book, replace(good, envelope='{"payload":""}'))
        assert_refused(book, book.claim("9", number=2))
        other = opened(order=5)
        assert_refused(book, replace(other.claim("9"), time=2 * 10**9))  # signed for another ledger

    def test_a_claim_is_used_once(self) -> None:
        book = enrolled()
        first = book.claim("9")
        book.write(first)
        book.write(book.claim("8"))
        assert_refused(book, replace(first, time=2 * 10**9))
        assert_refused(book, replace(first, number=3, time=2 * 10**9))


def test_a_raised_claim_is_reported_for_ever() -> None:
    book = enrolled()
    budget = book.state.budget
    book.write(book.claim("9"))
    assert book.state.budget > budget
    assert book.state.claims == (Decimal(8), Decimal(9))


def test_a_claim_is_not_lowered_below_what_was_spent() -> None:
    book = enrolled()
    book.reserve(STUDY_A, TRAIN_A, blocks=["0/1.train"])
    assert_refused(book, book.claim("5"))
    book.write(book.claim("7.5"))


def test_steps_come_in_order_and_once() -> None:
    book = enrolled()
    key = task_key(STUDY_A)
    for step in (book.start, book.seal, book.release, book.abort):
        with pytest.raises(TransitionError):
            step(key)
    book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
    for step in (book.seal, book.release):
        with pytest.raises(TransitionError):
            step(key)
    book.start(key)
    for step in (book.start, book.release):
        with pytest.raises(TransitionError):
            step(key)
    book.seal(key)
    for step in (book.start, book.seal):
        with pytest.raises(TransitionError):
            step(key)
    book.release(key)
    for step in (book.start, book.seal, book.release):
        with pytest.raises(TransitionError):
            step(key)
    assert book.state.tasks[key].phase is Phase.RELEASED


def test_an_abort_before_the_start_gives_everything_back() -> None:
    book = enrolled()
    book.cohort(STUDY_A, 1)
    before = book.state
    book.reserve(STUDY_A, TRAIN_A, blocks=["0/1.train"])
    assert_refused(book, book.reserve_entry(STUDY_A, STEPS, blocks=["0/1.train"], attempt=2))
    book.abort(task_key(STUDY_A))
    assert book.state.blocks == before.blocks
    book.reserve(STUDY_A, STEPS, blocks=["0/1.train"], attempt=2)


def test_a_study_never_runs_more_than_its_own_programme() -> None:
    book = enrolled()
    book.reserve(STUDY_A, sampled("0.05", "1", 150), blocks=["0/1.train"])
    book.cohort(STUDY_A, 2)
    for uses in ((sampled("0.05", "1", 51),), (sampled("0.01", "1", 1),), (sampled("0.05", "9", 1),)):
        assert_refused(book, book.reserve_entry(STUDY_A, *uses, blocks=["0/1.train"], round_=2))
    book.reserve(STUDY_A, sampled("0.05", "1", 50), blocks=["0/1.train"], round_=2)


def test_the_parts_of_a_study_are_charged_apart() -> None:
    book = opened()
    book.enrol(STUDY_A, test=[sampled("0.05", "1", 10)], train=[TRAIN_A])
    book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])
    assert book.state.spent("0/1.test") == book.state.spent("0") == 0
    book.cohort(STUDY_A, 2)
    both = book.reserve_entry(STUDY_A, sampled("0.05", "1", 11), blocks=["0/1.test", "0/1.train"], round_=2)
    assert_refused(book, both)


def test_a_round_has_a_cohort_before_it_is_reserved_and_only_one() -> None:
    book = enrolled()
    assert_refused(book, book.reserve_entry(STUDY_A, STEPS, blocks=["0/1.train"]))
    book.cohort(STUDY_A, 1)
    with pytest.raises(TransitionError):
        book.cohort(STUDY_A, 1)
    book.reserve(STUDY_A, STEPS, blocks=["0/1.train"])


def test_a_study_that_no_block_can_pay_is_refused_before_anything_is_read() -> None:
    book = opened()
    with pytest.raises(BudgetExceededError):
        book.enrol(STUDY_A, train=[sampled("0.05", "1", 1000)])
    assert book.state.studies == {}


def test_a_reservation_that_one_block_cannot_pay_is_refused() -> None:
    book = enrolled()
    book.reserve(STUDY_A, TRAIN_A, blocks=["0/1.train"])
    book.enrol(STUDY_B, train=[sampled("0.05", "1", 200)])
    book.cohort(STUDY_B, 1)
    steps = sampled("0.05", "1", 200)
    blocks = ["0/1.train/2.train", "0/2.train"]
    assert_refused(book, book.reserve_entry(STUDY_B, steps, blocks=blocks), BudgetExceededError)
    book.reserve(STUDY_B, steps, blocks=["0/2.train"])


def test_the_blocks_stay_few_enough_to_verify() -> None:
    """2 families and 3 choices in each of 5 studies are 486 blocks; a sixth study would make them 1,458."""
    book = opened()
    small = sampled("0.0001", "20", 1)
    studies = [digest(f"{number}".encode()) for number in range(6)]
    for study in studies[:5]:
        book.enrol(study, a=[small], b=[small])
    assert len(book.state.blocks) == 486
    with pytest.raises(TransitionError):
        book.enrol(studies[5], a=[small], b=[small])
    assert len(book.state.blocks) == 486
    book.close(studies[0])
    book.enrol(studies[5], a=[small], b=[small])
    assert len(book.state.blocks) == 486


def test_the_first_entry_is_a_policy_and_time_does_not_go_back() -> None:
    book = one_of_each()
    with pytest.raises(TransitionError):
        verify_history(book.written[1:])
    entries = [parse_entry(data) for data in book.written]
    state = LedgerState()
    for entry in entries[:5]:
        state = apply(state, entry)
    with pytest.raises(TransitionError):
        apply(state, replace(entries[5], time=entries[3].time))
    with pytest.raises(TransitionError):
        _ = LedgerState().in_force


def test_a_policy_that_nothing_satisfies_is_refused() -> None:
    for change in ({"epsilon": Decimal("0.001")}, {"order": 65}):
        with pytest.raises(TransitionError):
            Book(order=4).policy(**change)


def test_one_entry_after_the_other_is_the_same_as_all_at_once() -> None:
    book = one_of_each()
    state = LedgerState()
    for data in book.written:
        before = state
        copy = replace(state, blocks=dict(state.blocks), tasks=dict(state.tasks), studies=dict(state.studies))
        state = apply(state, parse_entry(data))
        assert before == copy  # pure: the earlier state is untouched
    assert state == verify_history(book.written) == book.state


def test_dropping_swapping_or_doubling_an_entry_is_found_or_changes_nothing() -> None:
    """The tree finds any such change; these rules find most of them alone, and none that lowers what was spent."""
    written = one_of_each().written
    true = verify_history(written)
    for position in range(len(written)):
        doubled = [*written[: position + 1], *written[position:]]
        swapped = [
            *written[:position],
            *written[position + 1 : position + 2],
            written[position],
            *written[position + 2 :],
        ]
        for history in (doubled, swapped):
            try:
                state = verify_history(history)
            except FedtwinError:
                continue
            assert {name: block.spent for name, block in state.blocks.items()} == {
                name: block.spent for name, block in true.blocks.items()
            }


def test_what_is_wrong_names_the_entry() -> None:
    written = one_of_each().written
    with pytest.raises(VerificationError, match=r"entry 3"):
        verify_history([*written[:3], b"{}", *written[4:]])
    with pytest.raises(TransitionError, match=r"entry 3"):
        verify_history([*written[:3], written[0], *written[3:]])
