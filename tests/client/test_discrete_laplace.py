"""Noise on integers: its exact probabilities, far into the tails, and what a release is charged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fedtwin_client import discrete_laplace
from fedtwin_client.discrete_laplace import draw_discrete_laplace, release_counts
from fedtwin_client.randomness import KeyStream
from fedtwin_shared.ledger.mechanism import DiscreteLaplace
from fedtwin_simulations.seeded_randomness import SeededStream

DRAWS = 4000
SCALES = (Fraction(1, 3), Fraction(5, 2), Fraction(20))


class Fixed(KeyStream):
    """A stream whose words are given, each once."""

    def __init__(self, words: Iterator[int]) -> None:
        super().__init__()
        self._words = words

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.array([next(self._words) for _ in range(count)], np.uint64)


def probability(scale: Fraction, value: int) -> float:
    ratio = math.exp(-1 / scale)
    return (1 - ratio) / (1 + ratio) * ratio ** abs(value)


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_draws_have_the_stated_probabilities(scale: Fraction) -> None:
    stream = SeededStream(bytes(32))
    drawn = Counter(draw_discrete_laplace(stream, scale) for _ in range(DRAWS))
    middle = [value for value in range(-200, 201) if DRAWS * probability(scale, value) >= 10]
    expected = [DRAWS * probability(scale, value) for value in middle]
    found = [drawn[value] for value in middle]
    result = stats.chisquare([*found, DRAWS - sum(found)], [*expected, DRAWS - sum(expected)])
    assert result.pvalue > 1e-4
    another = stats.chisquare(found, [sum(found) / len(found)] * len(found))
    assert len(found) < 3 or another.pvalue < 1e-4, "the test must tell it from another distribution"


@pytest.mark.parametrize("rate", [Fraction(0), Fraction(1, 7), Fraction(2, 3), Fraction(1)], ids=str)
def test_acceptance_has_the_exact_probability_by_summing_over_all_paths(rate: Fraction) -> None:
    # P(stops at turn k) = rate^(k-1)/(k-1)! · (1 - rate/k); accepted at odd k.
    stops = [rate ** (k - 1) / math.factorial(k - 1) * (1 - rate / k) for k in range(1, 30)]
    assert float(sum(stops[::2], Fraction(0))) == pytest.approx(math.exp(-rate), rel=1e-14)
    for k in range(1, 6):  # … and the code stops there when k - 1 draws are below the numerator and one is not
        words = iter([0] * (k - 1) + [2**63 + 1])
        if 0 < rate < 1:
            assert discrete_laplace._accepts_exponential(Fixed(_spread(words, rate)), rate) == (k % 2 == 1)


def _spread(words: Iterator[int], rate: Fraction) -> Iterator[int]:
    """0 stays the smallest draw; anything else becomes the largest of its range."""
    for turn, word in enumerate(words, start=1):
        yield 0 if word == 0 else rate.denominator * turn - 1


def test_integers_are_uniform_below_any_end_and_the_uneven_rest_of_a_word_is_drawn_again() -> None:
    stream = SeededStream(bytes(32))
    drawn = Counter(discrete_laplace._below(stream, 6) for _ in range(6000))
    assert stats.chisquare([drawn[value] for value in range(6)]).pvalue > 1e-4
    assert discrete_laplace._below(Fixed(iter([2**64 - 1, 11])), 6) == 5  # 2^64 = 4 (mod 6)
    wide = 3 * 2**64
    assert discrete_laplace._below(Fixed(iter([5, 2])), wide) == 5 + 2 * 2**64


def test_tails_go_on_beyond_what_128_bits_would_reach() -> None:
    """One word of luck after the other: |X| grows by the scale for each, without an end."""
    scale, luck = Fraction(3), 200
    accept = [0, 1]  # a draw that is below 1, then one that is not below 1 of 2: stops at turn 2, refused
    assert not discrete_laplace._accepts_exponential(Fixed(iter([0, 1])), Fraction(1))
    # exp(-1) is accepted when two draws are lucky and the third is not: turn 3.
    words = [0, *_accepted(Fraction(0)), *(word for _ in range(luck) for word in (0, 0, 2)), *accept, 0]
    assert draw_discrete_laplace(Fixed(iter(words)), scale) == 3 * luck
    assert math.exp(-luck) < 2.0**-128


def _accepted(rate: Fraction) -> list[int]:
    """The words with which a rate of 0 is accepted: one draw, whatever it is."""
    assert rate == 0
    return [0]


def test_a_release_is_the_counts_and_noise_of_the_mechanisms_scale() -> None:
    counts = np.arange(400).reshape(20, 20)
    mechanism = DiscreteLaplace(scale=Decimal("2.5"))
    released = release_counts(counts, mechanism, SeededStream(bytes(32)))
    assert released.shape == counts.shape
    assert released.dtype == np.int64
    ratio = math.exp(-1 / 2.5)
    variance = 2 * ratio / (1 - ratio) ** 2
    noise = (released - counts).ravel()
    assert noise.mean() == pytest.approx(0, abs=5 * math.sqrt(variance / 400))
    assert noise.var() == pytest.approx(variance, rel=0.6)


@pytest.mark.parametrize("scale", [Fraction(0), Fraction(-1, 2)])
def test_a_scale_without_meaning_is_refused(scale: Fraction) -> None:
    with pytest.raises(ValueError, match="expected scale > 0"):
        draw_discrete_laplace(KeyStream(), scale)
