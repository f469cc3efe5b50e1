from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.secagg.terms import Terms, honest_sites, share_noise, smallest_threshold
from tests.shared.secagg.assembly import make_setup, make_step, make_terms, members_of

GOOD = make_terms(10, dropouts=1, colluders=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"members": members_of(2)}, "3 to 200"),
        ({"members": members_of(201)}, "3 to 200"),
        ({"members": members_of(10)[::-1]}, "sorted"),
        ({"members": (*members_of(9), ("site-009", members_of(1)[0][1]))}, "once"),
        ({"colluders": 0}, "colluders >= 1"),
        ({"dropouts": -1}, "dropouts >= 0"),
        ({"threshold": 7}, "2 * threshold > 10 sites"),
        ({"threshold": 10}, "threshold <= 10 sites - 1"),
        ({"instances": 0}, "instances"),
        ({"largest": 0}, "largest >= 1"),
        ({"largest": 2**63 // 10 + 1}, "< 2^63"),
    ],
)
def test_terms_that_would_not_hold_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("*", r"\*").replace("^", r"\^")):
        replace(GOOD, **change)  # type: ignore[arg-type]  # each case gives one field its own type


@pytest.mark.parametrize("count", [4, 7, 10])
def test_two_thirds_and_a_third_is_not_enough(count: int) -> None:
    # t = floor(2n/3) + 1 and c = ceil(n/3): 2t = n + c, so that two survivor sets could both be signed.
    threshold, colluders = 2 * count // 3 + 1, -(-count // 3)
    assert 2 * threshold == count + colluders
    with pytest.raises(ValueError, match="2 "):
        replace(make_terms(count, dropouts=0), threshold=threshold, colluders=colluders)


@given(count=st.integers(3, 200), colluders=st.integers(1, 100))
def test_the_smallest_threshold_is_the_smallest(count: int, colluders: int) -> None:
    threshold = smallest_threshold(count, colluders=colluders)
    assert 2 * threshold > count + colluders >= 2 * (threshold - 1)


@given(count=st.integers(3, 200), dropouts=st.integers(0, 66), colluders=st.integers(1, 66), noise=st.floats(1e-3, 1e6))
def test_the_honest_sites_of_any_revealed_sum_add_the_planned_noise(
    count: int, dropouts: int, colluders: int, noise: float
) -> None:
    threshold = smallest_threshold(count, colluders=colluders)
    if threshold > count - dropouts:
        return
    terms = Terms(
        members=members_of(count),
        threshold=threshold,
        dropouts=dropouts,
        colluders=colluders,
        instances=1,
        largest=1,
    )
    honest = honest_sites(terms)
    assert honest == count - dropouts - colluders >= 1
    one = share_noise(noise, terms)
    assert honest * one * one >= noise * noise
    assert honest * one * one < noise * noise * (1 + 1e-12)


def test_every_field_of_a_set_up_and_of_a_step_is_in_its_digest() -> None:
    setup = make_setup(GOOD)
    changed = [
        replace(setup, study="0" * 64),
        replace(setup, run="1" * 32),
        replace(setup, number=2),
        replace(setup, terms=replace(GOOD, largest=7)),
        replace(setup, terms=replace(GOOD, dropouts=0)),
    ]
    assert len({setup.digest, *(one.digest for one in changed)}) == 6
    step = make_step()
    others = [
        replace(step, instance=1),
        replace(step, round=9),
        replace(step, attempt=2),
        replace(step, plan="0" * 64),
        replace(step, model="0" * 64),
        replace(step, length=6),
    ]
    assert len({step.bind("a" * 64), step.bind("b" * 64), *(one.bind("a" * 64) for one in others)}) == 8
