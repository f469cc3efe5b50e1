"""Whatever is lost and whenever: the exact sum of the survivors, or a refusal, and never anything else."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fedtwin_shared.secagg.message import ProtocolError
from tests.shared.secagg.assembly import (
    Assembly,
    make_setup,
    make_step,
    make_terms,
    random_vectors,
    run_step,
    set_up,
)
from tests.soak import SOAK

SCHEDULES = 10_000 if SOAK else 48
STEPS = 4  # schedules with one set-up
STAGES = ("unmasked", "disagreeing", "unrevealing")


def test_the_sum_is_exact_with_everybody_present() -> None:
    assembly = set_up(make_setup(make_terms(5)))
    vectors = random_vectors(assembly.members, 70_000, seed=1)  # more than four chunks of a stream
    survivors, total = run_step(assembly, make_step(length=70_000), vectors)
    assert survivors == tuple(assembly.members)
    assert np.array_equal(total, sum(vectors.values()))


@pytest.mark.parametrize("length", [0, 1, 16_384, 16_385])
def test_any_length_of_vector_is_summed(length: int) -> None:
    assembly = set_up(make_setup(make_terms(3)))
    vectors = random_vectors(assembly.members, length, seed=length)
    _, total = run_step(assembly, make_step(length=length), vectors)
    assert np.array_equal(total, sum(vectors.values()))


def test_the_largest_numbers_that_the_terms_allow_do_not_overflow() -> None:
    terms = make_terms(3)
    assembly = set_up(make_setup(terms))
    for sign in (1, -1):
        vectors = {name: np.full(5, sign * terms.largest) for name in assembly.members}
        fresh = set_up(make_setup(terms))
        _, total = run_step(fresh, make_step(), vectors)
        assert (total == sign * 3 * terms.largest).all()


def test_a_masked_vector_says_nothing_of_the_vector() -> None:
    # Not a proof: an unmasked coordinate would be small, and these are spread over all 64 bits.
    assembly = set_up(make_setup(make_terms(3)))
    data = assembly.members["site-000"].mask(make_step(length=20_000), np.zeros(20_000, dtype=np.int64))
    numbers = np.frombuffer(data[-160_000:], dtype="<u8")
    share_of_ones = np.unpackbits(numbers.view(np.uint8)).mean()
    assert abs(share_of_ones - 0.5) < 6 * 0.5 / np.sqrt(64 * 20_000)
    assert len(np.unique(numbers)) == 20_000


def test_random_schedules_of_losses_give_the_exact_sum_or_a_refusal() -> None:
    generator, exact, refused = random.Random(5), 0, 0
    for schedule in range(0, SCHEDULES, STEPS):
        count = generator.randint(3, 8)
        most = count - 1 - (count + 1) // 2
        terms = make_terms(count, dropouts=generator.randint(0, max(most, 0)), instances=STEPS)
        # Now and then one more is lost than the terms allow, in one stage or spread over all of them.
        lost = _lose(terms.names, terms.dropouts, generator)
        remaining = [name for name in terms.names if not any(name in stage for stage in lost.values())]
        try:
            assembly = set_up(make_setup(terms), silent=lost["silent"], undealt=lost["undealt"], deaf=lost["deaf"])
        except ProtocolError:
            assert len(terms.names) - len(lost["silent"] | lost["undealt"]) < terms.minimum
            refused += STEPS
            continue
        for instance in range(STEPS):
            if _check_step(assembly, instance, remaining, generator, seed=schedule + instance):
                exact += 1
            else:
                refused += 1
    assert exact > SCHEDULES / 3
    assert refused > SCHEDULES / 20
    assert exact + refused == SCHEDULES


def _check_step(
    assembly: Assembly, instance: int, remaining: list[str], generator: random.Random, *, seed: int
) -> bool:
    """Whether the sum was revealed; it is then right, and otherwise too few were there."""
    terms, vectors = assembly.setup.terms, random_vectors(assembly.members, 5, seed=seed)
    already = len(terms.names) - len(remaining)
    lost = {stage: frozenset[str]() for stage in STAGES}
    for name in generator.sample(
        remaining, min(len(remaining), generator.randint(0, max(0, terms.dropouts - already + 1)))
    ):
        stage = generator.choice(STAGES)
        lost[stage] |= {name}
    present = [name for name in remaining if name not in lost["unmasked"]]
    revealing = len(present) - len(lost["disagreeing"] | lost["unrevealing"])
    try:
        survivors, total = run_step(assembly, make_step(instance=instance), vectors, **lost)
    except ProtocolError:
        assert len(present) < terms.minimum or revealing < terms.threshold
        return False
    assert list(survivors) == present
    assert np.array_equal(total, sum(vectors[name] for name in survivors))
    return True


def _lose(names: tuple[str, ...], dropouts: int, generator: random.Random) -> dict[str, frozenset[str]]:
    lost = {stage: frozenset[str]() for stage in ("silent", "undealt", "deaf")}
    for name in generator.sample(names, generator.choice([0, 0, dropouts, dropouts, dropouts + 1])):
        lost[generator.choice(list(lost))] |= {name}
    return lost
