"""The integer grid: exact arithmetic, the sensitivity as stated, and noise that gives nothing away by its last bits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedtwin_client.training import grid
from fedtwin_simulations.seeded_randomness import SeededStream
from tests.client.small import small_study

Clip = st.floats(*grid.CLIPS)
ANY_ROW = arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 20)), elements=st.floats(width=32))


def quantise(rows: grid.Rows, clip: float) -> grid.Total:
    """Return each row on the grid, i64[patients, d]."""
    found = []
    for row in rows:
        total = np.zeros(len(row), np.int64)
        alone = row[None]
        grid.accumulate(total, alone, grid.clip_factors(grid.measure_norms(alone), clip=clip))
        found.append(total)
    return np.array(found)


@settings(max_examples=300, deadline=None)
@given(rows=ANY_ROW, clip=Clip)
def test_one_patient_changes_the_sum_by_at_most_the_sensitivity(rows: grid.Rows, clip: float) -> None:
    # In exact integers: whatever the numbers are, infinite and NaN included, and however large.
    bound = Fraction(grid.UNITS) + Fraction(math.sqrt(rows.shape[1])) / 2
    for row in quantise(rows, clip):
        assert sum(int(number) ** 2 for number in row) <= bound**2


@settings(max_examples=200, deadline=None)
@given(rows=ANY_ROW, clip=Clip)
def test_both_forms_give_the_same_bits(rows: grid.Rows, clip: float) -> None:
    norms, plain = grid.measure_norms(rows), grid.measure_norms_plainly(rows)
    assert norms.tobytes() == plain.tobytes() or np.array_equal(norms, plain, equal_nan=True)
    factors = grid.clip_factors(norms, clip=clip)
    total, other = np.ones((2, rows.shape[1]), np.int64)
    grid.accumulate(total, rows, factors)
    grid.accumulate_plainly(other, rows, factors)
    assert np.array_equal(total, other)


def test_both_forms_give_the_same_bits_at_full_size() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 5003)).astype(np.float32)
    rows[3, 17] = np.nan
    norms = grid.measure_norms(rows)
    assert np.array_equal(norms, grid.measure_norms_plainly(rows), equal_nan=True)
    expected = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert norms == pytest.approx(expected, rel=1e-12, nan_ok=True)
    factors = grid.clip_factors(norms, clip=0.5)
    total, other = np.zeros((2, 5003), np.int64)
    grid.accumulate(total, rows, factors)
    grid.accumulate_plainly(other, rows, factors)
    assert np.array_equal(total, other)


def test_a_short_gradient_is_kept_and_a_long_one_gets_the_length_of_the_clip() -> None:
    rows = np.array([[0.3, -0.4], [30.0, -40.0], [0.0, 0.0]], np.float32)
    found = quantise(rows, 1.0)
    assert found[0] == pytest.approx(rows[0] * grid.UNITS, abs=1)
    assert found[1] == pytest.approx(np.array([0.6, -0.8]) * grid.UNITS, abs=4)
    assert found[2].tolist() == [0, 0]


@given(bad=st.sampled_from([np.nan, np.inf, -np.inf]), column=st.integers(0, 9))
def test_a_row_that_is_not_finite_counts_as_zero(bad: float, column: int) -> None:
    rows = np.ones((3, 10), np.float32)
    rows[1, column] = bad
    found = quantise(rows, 2.0)
    assert found[1].tolist() == [0] * 10
    assert found[0].any()


def test_the_largest_numbers_there_are_stay_inside_int64() -> None:
    rows = np.full((3, 8), np.finfo(np.float32).max, np.float32)
    rows[1] *= -1
    for clip in grid.CLIPS:
        assert np.abs(quantise(rows, clip)).max() <= grid.UNITS
    noise = 13.4 * grid.noise_deviation(10**9, noise_multiplier=grid.MAXIMUM_NOISE)
    assert grid.MAXIMUM_PATIENTS * (grid.UNITS + 1) + noise < 2**53
    deviation = grid.noise_deviation(10**9, noise_multiplier=grid.MAXIMUM_NOISE)
    drawn = grid.draw_noise(SeededStream(bytes(32)), 1000, deviation=deviation)
    assert drawn.std() == pytest.approx(deviation, rel=0.2)


@given(dimension=st.integers(1, 10**7), multiplier=st.floats(1e-9, grid.MAXIMUM_NOISE))
def test_the_accounted_multiplier_is_never_below_the_plans(dimension: int, multiplier: float) -> None:
    deviation = Fraction(grid.noise_deviation(dimension, noise_multiplier=multiplier))
    # deviation >= multiplier · (2^24 + √d / 2), in exact numbers
    half_root = deviation / Fraction(multiplier) - grid.UNITS
    assert half_root > 0
    assert (2 * half_root) ** 2 >= dimension
    assert float(deviation) <= multiplier * (grid.UNITS + math.sqrt(dimension) / 2) * (1 + 1e-12)


def test_the_limits_are_those_of_a_study() -> None:
    for clip in grid.CLIPS:
        study = small_study(privacy={"clip": clip, "noise_multiplier": grid.MAXIMUM_NOISE})
        grid.check_mechanism(clip=study.privacy.clip, noise_multiplier=study.privacy.noise_multiplier)
    for table in (
        {"clip": grid.CLIPS[0] / 2},
        {"clip": grid.CLIPS[1] * 2},
        {"noise_multiplier": grid.MAXIMUM_NOISE * 2},
        {"noise_multiplier": 0.0},
    ):
        with pytest.raises(ValueError):
            small_study(privacy=table)
        with pytest.raises(ValueError, match="use the study's privacy"):
            grid.check_mechanism(**({"clip": 1.0, "noise_multiplier": 1.0} | table))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_numbers_without_meaning_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="clip"):
        grid.check_mechanism(clip=value, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="noise_multiplier"):
        grid.check_mechanism(clip=1.0, noise_multiplier=value)


ATTACKED = 100_000


def proves_presence(released: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """Return the share of coordinates that prove that the sum before noise was 0 and not 1.

    Source: Mironov (CCS 2012), for float32 sums. 1 + n, rounded to float32, lies on the grid of 1 when the result is in
    (0, 1/2]: multiples of 2^-24. Any other number there cannot come from a sum of 1.
    """
    small = (released > 0) & (released <= 0.5)
    return float(np.mean(small & (np.mod(released * 2.0**24, 1.0) != 0)))


def test_float_noise_proves_a_presence_on_more_than_a_tenth_of_coordinates_and_ours_on_none() -> None:
    generator = torch.Generator().manual_seed(0)
    for x, low, high in ((0.0, 0.11, 0.14), (1.0, 0.0, 0.0)):
        released = x + torch.normal(0.0, 1.0, (ATTACKED,), generator=generator)  # as Opacus adds it
        assert low <= proves_presence(released.numpy().astype(np.float64)) <= high
    stream = SeededStream(bytes(32))
    deviation = grid.noise_deviation(1, noise_multiplier=1.0)
    for here in (0, 1):
        total = here * grid.UNITS + grid.draw_noise(stream, ATTACKED, deviation=deviation)
        ours = (total / grid.scale(1.0)).astype(np.float32)
        assert proves_presence(ours.astype(np.float64)) == 0.0


def test_the_last_bits_of_our_noise_are_the_same_for_every_sum() -> None:
    stream = SeededStream(bytes(32))
    deviation = grid.noise_deviation(1, noise_multiplier=1.0)
    for x in (0, 1, grid.UNITS // 3, grid.UNITS):
        total = x + grid.draw_noise(stream, ATTACKED, deviation=deviation)
        for bit in range(8):
            assert np.mean((total >> bit) & 1) == pytest.approx(0.5, abs=5 / (2 * math.sqrt(ATTACKED)))
