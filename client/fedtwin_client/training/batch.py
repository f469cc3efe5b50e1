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

    def chunks(self, patients: int) -> Iterator[Batch]:
        """Yield the batch in pieces of at most `patients`; an empty batch is one empty piece."""
        for start in range(0, max(len(self), 1), patients):
            piece = slice(start, start + patients)
            yield Batch(x=self.x[piece], mask=self.mask[piece], y=self.y[piece])


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
