"""Patients as tensors, and the pieces of one shape in which they are computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtwin_client.cohort import Examples

Slots = npt.NDArray[np.int64]


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

    def take(self, rows: Tensor) -> Batch:
        """Return the patients of `rows`, bool[patients] or i64[any]."""
        return Batch(x=self.x[rows], mask=self.mask[rows], y=self.y[rows])

    def tiles(self, slots: Slots, *, size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield tiles of `size` slots and, for each slot, the patient in it: i64[size], -1 where it is empty.

        slots: i64[patients], the slot of each patient. Of those who want the same slot, the first is in the first tile.

        Products round a row differently in other shapes and other places, and a hostile model can blow that up. Here a
        patient's slot depends on nobody else, and tiles have one shape.

        - an empty slot is all zeros
        - nobody: no tile
        """
        order = np.argsort(slots, kind="stable")
        taken = slots[order]
        turn = np.arange(len(slots)) - np.searchsorted(taken, taken)  # how many before wanted the same slot
        for number in range(int(turn.max(initial=-1)) + 1):
            now = turn == number
            patients = np.full(size, -1, np.int64)
            patients[taken[now]] = order[now]
            yield self._tile(torch.from_numpy(patients))

    def _tile(self, patients: Tensor) -> tuple[Batch, Tensor]:
        filled = patients >= 0
        parts = []
        for whole in (self.x, self.mask, self.y):
            part = whole.new_zeros((len(patients), *whole.shape[1:]))
            part[filled] = whole[patients[filled]]
            parts.append(part)
        x, mask, y = parts
        return Batch(x=x, mask=mask, y=y), patients


def as_batch(examples: Examples) -> Batch:
    """Return all of `examples`, without a copy."""
    return Batch(x=torch.from_numpy(examples.x), mask=torch.from_numpy(examples.mask), y=torch.from_numpy(examples.y))
