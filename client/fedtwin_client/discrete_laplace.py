"""Counts with noise on integers, drawn exactly: P(X = x) proportional to exp(-|x| / scale).

Design note: every probability below is a ratio of integers, compared with integers uniform on a range; no logarithm and
no float takes part, so tails end nowhere and nothing is owed to δ. Floating-point Laplace noise can be recognised by
its last bits (Mironov, CCS 2012). How long a draw takes depends on what is drawn; a reply must not be timed by it.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedtwin_client.randomness import KeyStream
from fedtwin_shared.ledger.mechanism import DiscreteLaplace

Counts = npt.NDArray[np.int64]


def release_counts(counts: Counts, mechanism: DiscreteLaplace, stream: KeyStream) -> Counts:
    """Return counts[…] with independent noise: ε = sensitivity ÷ scale, δ = 0 for one patient added or removed.

    The mechanism's sensitivity is the caller's promise: the most by which one patient changes all counts together, L1.
    """
    scale = Fraction(mechanism.scale)
    noise = [draw_discrete_laplace(stream, scale) for _ in range(counts.size)]
    return counts + np.array(noise, np.int64).reshape(counts.shape)


def draw_discrete_laplace(stream: KeyStream, scale: Fraction) -> int:
    """Return one integer X with P(X = x) = (1 - p) / (1 + p) · p^|x|, p = exp(-1 / scale).

    Source: Canonne, Kamath, Steinke (NeurIPS 2020), algorithm 2.
    """
    if not scale > 0:
        raise ValueError(f"expected scale > 0, found {scale}")
    top, bottom = scale.numerator, scale.denominator
    while True:
        low = _below(stream, top)
        if not _accepts_exponential(stream, Fraction(low, top)):
            continue
        high = 0
        while _accepts_exponential(stream, Fraction(1)):
            high += 1
        size = (low + top * high) // bottom
        negative = _below(stream, 2) == 1
        if size > 0 or not negative:  # zero has one sign only
            return -size if negative else size


def _accepts_exponential(stream: KeyStream, rate: Fraction) -> bool:
    """Return true with probability exp(-rate), 0 <= rate <= 1.

    Source: Canonne, Kamath, Steinke (2020), algorithm 1, after von Neumann (1951) and Forsythe (1972).
    """
    turn = 1
    while _below(stream, rate.denominator * turn) < rate.numerator:
        turn += 1
    return turn % 2 == 1


def _below(stream: KeyStream, end: int) -> int:
    """Return an integer uniform on 0 … end - 1: whole words are drawn until one is below the largest multiple."""
    words = -(-end.bit_length() // 64)
    reach = 2 ** (64 * words)
    while True:
        drawn = int.from_bytes(stream.words(words).astype("<u8").tobytes(), "little")
        if drawn < reach - reach % end:
            return drawn % end
