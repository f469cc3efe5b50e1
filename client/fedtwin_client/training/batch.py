"""Who takes part in a step: each patient alone, with the probability that the plan states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedtwin_client.cohort import Examples


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Batch:
    """x, mask: [patients, windows, time, features]; y: [patients]. The first dimension is always the patient."""

    x: Tensor
    mask: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.dim() != 4 or self.mask.shape != self.x.shape or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                "expected x and mask [patients, windows, time, features] and y [patients], found "
                f"{tuple(self.x.shape)}, {tuple(self.mask.shape)}, {tuple(self.y.shape)}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def tiles(self, patients: int) -> Iterator[tuple[Batch, int]]:
        """Yield pieces of exactly `patients` rows, and how many of each are patients; the rest of the last is zeros.

        Matrix products round a row differently in products of different sizes, and a hostile model can blow that up: in
        pieces of one size, no patient's gradient or score depends on how many others there are.

        - an empty batch is one piece of zeros
        """
        for start in range(0, max(len(self), 1), patients):
            x, mask, y = (part[start : start + patients] for part in (self.x, self.mask, self.y))
            real = len(y)
            if real < patients:
                x, mask, y = (torch.cat([t, t.new_zeros((patients - real, *t.shape[1:]))]) for t in (x, mask, y))
            yield Batch(x=x, mask=mask, y=y), real


def as_batch(examples: Examples) -> Batch:
    """Return all of `examples`, without a copy."""
    return Batch(x=torch.from_numpy(examples.x), mask=torch.from_numpy(examples.mask), y=torch.from_numpy(examples.y))


def draw_batch(everybody: Batch, *, rate: float, generator: torch.Generator) -> Batch:
    """Return a Poisson sample: every patient with probability `rate`, independently of all others.

    - at rate 1 everybody, without a draw
    - the sample may be empty
    """
    if not 0 < rate <= 1:
        raise ValueError(f"expected 0 < rate <= 1, found {rate}")
    if rate == 1:
        return everybody
    drawn = torch.rand(len(everybody), generator=generator, dtype=torch.float64) < rate
    return Batch(x=everybody.x[drawn], mask=everybody.mask[drawn], y=everybody.y[drawn])
