"""What every journal must do. A subclass gives the fixture `journal`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.journal import Journal, SealedAnswer, Spend, TaskKey
from fedtwin_shared.round import RefusalCode, Task

STUDY = "a" * 64
LIMIT = Spend(steps=10, releases=2)


def key(
    *, round_: int = 1, attempt: int = 1, task: Task = Task.TRAIN, run: str = "b" * 32, study: str = STUDY
) -> TaskKey:
    return TaskKey(study=study, run=run, round=round_, attempt=attempt, task=task)


def answer(value: float = 1.5) -> SealedAnswer:
    arrays = {"hidden0.weight": np.full((2, 3), value, dtype=np.float32), "envelope": np.zeros(0, dtype=np.float32)}
    return SealedAnswer(plan="c" * 64, envelope=b'{"envelope":"\xc3\xa9"}', arrays=arrays)


def assert_same(one: SealedAnswer | None, other: SealedAnswer) -> None:
    assert one is not None
    assert (one.plan, one.envelope) == (other.plan, other.envelope)
    assert list(one.arrays) == list(other.arrays)
    for name, array in other.arrays.items():
        assert one.arrays[name].dtype == array.dtype
        assert one.arrays[name].shape == array.shape
        assert one.arrays[name].tobytes() == array.tobytes()


class JournalContract:
    """Run by every implementation, whose test class has a fixture `journal`: an empty one."""

    def test_a_key_is_charged_once(self, journal: Journal) -> None:
        assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is None
        assert journal.charge(key(), Spend(steps=3), limit=LIMIT) is RefusalCode.ATTEMPT_SPENT
        assert journal.charged(STUDY) == Spend(steps=3)

    def test_keys_that_differ_in_anything_are_different(self, journal: Journal) -> None:
        others = [key(round_=2), key(attempt=2), key(task=Task.EVALUATE), key(run="d" * 32), key()]
        for other in others:
            assert journal.charge(other, Spend(steps=1), limit=LIMIT) is None
        assert journal.charged(STUDY) == Spend(steps=5)

    def test_what_is_beyond_the_limit_is_refused_and_changes_nothing(self, journal: Journal) -> None:
        assert journal.charge(key(), Spend(steps=8, releases=1), limit=LIMIT) is None
        assert journal.charge(key(round_=2), Spend(steps=3), limit=LIMIT) is RefusalCode.BUDGET_SPENT
        assert journal.charge(key(round_=2), Spend(releases=2), limit=LIMIT) is RefusalCode.BUDGET_SPENT
        assert journal.charged(STUDY) == Spend(steps=8, releases=1)
        assert journal.charge(key(round_=2), Spend(steps=2, releases=1), limit=LIMIT) is None

    def test_a_refused_key_may_be_charged_later(self, journal: Journal) -> None:
        assert journal.charge(key(), Spend(steps=11), limit=LIMIT) is RefusalCode.BUDGET_SPENT
        assert journal.charge(key(), Spend(steps=10), limit=LIMIT) is None

    def test_studies_are_counted_apart(self, journal: Journal) -> None:
        other = "e" * 64
        assert journal.charge(key(), Spend(steps=10), limit=LIMIT) is None
        assert journal.charge(key(study=other), Spend(steps=4), limit=LIMIT) is None
        assert (journal.charged(STUDY), journal.charged(other)) == (Spend(steps=10), Spend(steps=4))
        assert journal.charged("f" * 64) == Spend()

    def test_a_sealed_answer_comes_back_bit_for_bit(self, journal: Journal) -> None:
        journal.charge(key(), Spend(steps=1), limit=LIMIT)
        assert journal.sealed(key()) is None
        sealed = answer()
        kept = {name: array.copy() for name, array in sealed.arrays.items()}
        journal.seal(key(), sealed)
        for array in sealed.arrays.values():
            array[...] = 7  # what the caller does with its arrays afterwards is no matter
        assert_same(journal.sealed(key()), SealedAnswer(plan=sealed.plan, envelope=sealed.envelope, arrays=kept))

    def test_the_last_answer_of_each_task_is_kept(self, journal: Journal) -> None:
        for number, task in enumerate((Task.TRAIN, Task.EVALUATE, Task.TRAIN), start=1):
            journal.charge(key(round_=number, task=task), Spend(steps=1), limit=LIMIT)
            journal.seal(key(round_=number, task=task), answer(number))
        assert_same(journal.sealed(key(round_=3)), answer(3))
        assert_same(journal.sealed(key(round_=2, task=Task.EVALUATE)), answer(2))

    def test_only_a_charged_key_is_sealed_and_only_once(self, journal: Journal) -> None:
        with pytest.raises(RuntimeError):
            journal.seal(key(), answer())
        journal.charge(key(), Spend(steps=1), limit=LIMIT)
        journal.seal(key(), answer())
        with pytest.raises(RuntimeError):
            journal.seal(key(), answer(2))
        assert_same(journal.sealed(key()), answer())

    def test_what_is_charged_is_never_above_the_limit(self, journal: Journal) -> None:
        rounds, attempts, steps, releases = (st.integers(1, 3), st.integers(1, 2), st.integers(0, 5), st.integers(0, 2))

        @settings(max_examples=20, deadline=None)
        @given(
            study=st.text("0123456789abcdef", min_size=64, max_size=64),
            asked=st.lists(st.tuples(rounds, attempts, steps, releases), max_size=12),
        )
        def check(study: str, asked: list[tuple[int, int, int, int]]) -> None:
            total = journal.charged(study)
            for number, attempt, steps, releases in asked:
                spend = Spend(steps=steps, releases=releases)
                if journal.charge(key(study=study, round_=number, attempt=attempt), spend, limit=LIMIT) is None:
                    total += spend
                assert journal.charged(study) == total
                assert total.within(LIMIT)

        check()
