"""Where a hospital's chance comes from: 32 bytes of the operating system for every task, stretched by AES-256-CTR.

Design note: everything that protects a patient (who takes part, the noise) is drawn here and nowhere else, never by
torch or numpy: their generators can be wound back from what they put out. The class below takes no key, so that nobody
at a hospital can repeat what it drew; a kind that takes one exists in the simulations package only.

Uniforms have 128 bits near zero, so that a Gaussian reaches 13.3 standard deviations; 53 bits would stop at 8.57, which
alone costs 2.8e-9 of δ in a thousand steps of 25,000 numbers.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

KEY_BYTES = 32
WORD = 2**64


class KeyStream:
    """A stream of independent bytes, numbers and choices under one key that is used once.

    Source: AES-256 (FIPS 197) in counter mode (NIST SP 800-38A §6.5), counter from 0.

    - the key is the operating system's and leaves this object in no way
    """

    def __init__(self) -> None:
        self._cipher = Cipher(AES(self._make_key()), CTR(bytes(16))).encryptor()

    def _make_key(self) -> bytes:
        return os.urandom(KEY_BYTES)

    def words(self, count: int) -> npt.NDArray[np.uint64]:
        """Return `count` uniform 64-bit integers: the next 8 · count bytes of the stream, little-endian."""
        drawn = self._cipher.update(bytes(8 * count))
        return np.frombuffer(drawn, dtype="<u8").astype(np.uint64, copy=False)

    def gaussians(self, count: int) -> npt.NDArray[np.float64]:
        """Return `count` independent numbers of mean 0 and variance 1.

        Source: Box and Muller (Ann. Math. Stat. 29 (2), 1958). Of every pair, the radius takes two words and the angle
        one.

        - they reach ± 13.3: the radius comes from a uniform in (0, 1] with 128 bits near 0
        """
        pairs = (count + 1) // 2
        high, low, turn = self.words(3 * pairs).reshape(3, pairs)
        # Never 0: half a step of the 128-bit grid is added. float64 keeps 53 bits from the leading one, not from 2^-1.
        uniform = (high.astype(np.float64) + (low.astype(np.float64) + 0.5) / WORD) / WORD
        radius = np.sqrt(-2.0 * np.log(uniform))
        angle = (2.0 * math.pi / WORD) * turn.astype(np.float64)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def choices(self, count: int, *, rate: float) -> npt.NDArray[np.bool_]:
        """Return `count` independent booleans, each true with probability `rate`, at most 2^-64 below it.

        - at rate 1 all are true, without a draw
        """
        if not 0 < rate <= 1:
            raise ValueError(f"expected 0 < rate <= 1, found {rate}")
        if rate == 1:
            return np.ones(count, bool)
        return self.words(count) < np.uint64(int(rate * WORD))  # exact: only the exponent of `rate` changes


class Randomness(Protocol):
    """A source of streams. Every call gives a fresh one, independent of all before; safe across threads."""

    def stream(self, task: str) -> KeyStream:
        """Return the stream for one task, `task` being what it is for ("train", "evaluate")."""
        ...


class SystemRandomness:
    """Every stream has a key of the operating system."""

    def stream(self, task: str) -> KeyStream:
        """Return a stream that nobody can repeat."""
        return KeyStream()
