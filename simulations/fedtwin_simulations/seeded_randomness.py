"""Chance that can be repeated, for simulations. A hospital cannot construct it: this package is not installed there."""

from __future__ import annotations

import hashlib
import threading

import torch


class SeededRandomness:
    """Generators that follow from a seed, a name and how many were asked for before.

    - the same seed, name and number give the same generator; any other gives an unrelated one
    """

    def __init__(self, *, seed: int, name: str) -> None:
        self._seed, self._name = seed, name
        self._asked = 0
        self._lock = threading.Lock()

    def generator(self) -> torch.Generator:
        """Return the next generator."""
        with self._lock:
            number, self._asked = self._asked, self._asked + 1
        drawn = hashlib.sha256(f"{self._seed}\n{self._name}\n{number}".encode()).digest()[:8]
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(drawn, "big", signed=True))
        return generator
