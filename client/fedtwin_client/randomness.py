"""Where a hospital's chance comes from.

Design note: sampling and noise are drawn from torch's generator, a Mersenne Twister: not a cryptographic one, and every
report says so. What protects until then is that its seed comes from the operating system and is known to nobody.
A seeded source exists in the simulations package only, so that a hospital cannot construct one.
"""

from __future__ import annotations

import os
from typing import Protocol

import torch

_SEED_BYTES = 8  # all that a torch generator takes


class Randomness(Protocol):
    """A source of generators. Every call gives a fresh one, independent of all before; safe across threads."""

    def generator(self) -> torch.Generator:
        """Return a generator for one task."""
        ...


class SystemRandomness:
    """Seeds every generator from the operating system."""

    def generator(self) -> torch.Generator:
        """Return a generator that nobody can repeat."""
        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(os.urandom(_SEED_BYTES), "big", signed=True))
        return generator
