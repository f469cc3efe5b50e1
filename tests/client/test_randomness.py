"""A hospital's chance: the operating system's, cryptographic, far enough into the tails, and repeatable by nobody."""

from __future__ import annotations

import inspect
import math
import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fedtwin_client.randomness import KeyStream, Randomness, SystemRandomness
from fedtwin_simulations.seeded_randomness import SeededRandomness, SeededStream

# NIST SP 800-38A has counter blocks other than ours; this is AES-256 of block 0 under an all-zero key (FIPS 197; the
# first block of every AES-256-CTR known-answer test with zero key, counter and plaintext).
ZERO_KEY_BLOCK = bytes.fromhex("dc95c078a2408989ad48a21492842087")


class Fixed(KeyStream):
    """A stream whose words are given."""

    def __init__(self, words: list[int]) -> None:
        super().__init__()
        self._words = words

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        assert count == len(self._words)
        return np.array(self._words, np.uint64)


def test_the_stream_is_aes_256_in_counter_mode_from_zero() -> None:
    assert SeededStream(bytes(32)).words(2).astype("<u8").tobytes() == ZERO_KEY_BLOCK


def test_a_stream_goes_on_where_it_stopped() -> None:
    whole, parts = SeededStream(bytes(32)), SeededStream(bytes(32))
    pieces = [parts.words(count) for count in (1, 7, 0, 5)]
    assert np.array_equal(np.concatenate(pieces), whole.words(13))


def test_all_256_bits_of_a_key_come_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def given(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(os, "urandom", given)
    stream = SystemRandomness().stream("train")
    assert asked == [32]
    assert stream.words(2).astype("<u8").tobytes() == ZERO_KEY_BLOCK


def test_a_hospital_can_give_no_key() -> None:
    assert list(inspect.signature(KeyStream).parameters) == []
    assert list(inspect.signature(SystemRandomness).parameters) == []


OTHER_CHANCE = re.compile(
    r"np\.random|default_rng|import random|manual_seed|torch\.(Generator|rand|normal|bernoulli|multinomial|poisson)"
    r"|\.(normal|uniform|bernoulli|exponential|geometric)_\(|[Dd]ropout"
)


def test_nothing_at_a_hospital_draws_from_a_generator_that_can_be_wound_back() -> None:
    assert OTHER_CHANCE.search("torch.randn(3)")
    found = [
        f"{file.name}: {line}"
        for file in Path(inspect.getfile(KeyStream)).parent.rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if OTHER_CHANCE.search(line)
    ]
    assert found == []


def test_every_stream_is_another_one() -> None:
    source: Randomness = SystemRandomness()
    drawn = {source.stream(task).words(1)[0] for task in ("train", "evaluate") for _ in range(100)}
    assert len(drawn) == 200


def test_gaussians_are_gaussian() -> None:
    drawn = SeededStream(bytes(32)).gaussians(200_001)
    assert len(drawn) == 200_001
    assert stats.kstest(drawn, "norm").pvalue > 1e-4
    assert drawn.var() == pytest.approx(1, abs=5 * math.sqrt(2 / len(drawn)))
    half = len(drawn) // 2  # both numbers of a pair, and neighbours
    for pair in (np.corrcoef(drawn[:half], drawn[half + 1 :]), np.corrcoef(drawn[1:], drawn[:-1])):
        assert abs(pair[0, 1]) < 5 / math.sqrt(half)
    assert abs(np.corrcoef(drawn[:half] ** 2, drawn[half + 1 :] ** 2)[0, 1]) < 5 / math.sqrt(half)


def test_gaussians_reach_beyond_13_standard_deviations() -> None:
    # The smallest uniforms: 128 bits of zero, then the last bit set, then where 64 bits alone would stop.
    for high, low, reached in ((0, 0, 13.3), (0, 1, 13.2), (0, 2**63, 9.4), (1, 0, 9.4)):
        assert float(np.linalg.norm(Fixed([high, low, 0]).gaussians(2))) >= reached
    assert np.linalg.norm(Fixed([2**64 - 1, 2**64 - 1, 0]).gaussians(2)) == 0.0


def test_gaussians_far_out_are_as_frequent_as_they_should_be() -> None:
    # Beyond what 53 bits can reach, by counting in the radius: uniforms below 2^-54 are those of high words below 2^10.
    rare = [float(np.linalg.norm(Fixed([high, 0, 0]).gaussians(2))) for high in (2**10, 2**10 - 1, 2**9)]
    expected = [math.sqrt(2 * math.log(2**64 / high)) for high in (2**10, 2**10 - 1, 2**9)]
    assert rare == pytest.approx(expected, rel=1e-12)
    assert min(rare) > 8.6


@pytest.mark.parametrize("rate", [1e-3, 0.05, 0.5, 0.999])
def test_choices_have_the_rate(rate: float) -> None:
    chosen = SeededStream(bytes(32)).choices(200_000, rate=rate)
    assert chosen.mean() == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / 200_000))


def test_a_choice_is_never_more_likely_than_the_rate() -> None:
    for rate in (0.05, 0.1, 1 / 3, 2.0**-60):
        threshold = int(rate * 2**64)
        assert Fixed([threshold - 1, threshold]).choices(2, rate=rate).tolist() == [True, False]


def test_rate_one_is_everybody_and_draws_nothing() -> None:
    stream, untouched = SeededStream(bytes(32)), SeededStream(bytes(32))
    assert stream.choices(5, rate=1.0).all()
    assert stream.words(1) == untouched.words(1)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        KeyStream().choices(3, rate=rate)


def test_seeded_streams_follow_from_all_five_and_repeat() -> None:
    def first(*, seed: int = 0, site: str = "north", fold: int = 0, task: str = "train", number: int = 0) -> int:
        source = SeededRandomness(seed=seed, site=site, fold=fold)
        drawn = [int(source.stream(task).words(1)[0]) for _ in range(number + 1)]
        return drawn[number]

    assert first() == first()
    kinds = [first(), first(seed=1), first(site="south"), first(fold=1), first(task="evaluate"), first(number=1)]
    assert len(set(kinds)) == len(kinds)
