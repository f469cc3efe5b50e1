"""Whether an engine's rows stay the same, bit for bit, whoever is in the other slots: measured where it runs."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from fedtwin_client.training.batch import Batch
from fedtwin_client.training.patient_gradients import PatientGradients


def find_moved_rows(gradients: PatientGradients, tile: Batch, *, seed: int = 0) -> tuple[int, ...]:
    """Return the slots of a full tile whose rows change a bit when patients trade places, leave, or are replaced.

    The tile should be made up: a public one shows the same as a hospital's. Who trades with whom follows from `seed`.
    """
    slots, device = len(tile), tile.x.device
    everybody = torch.ones(slots, dtype=torch.bool, device=device)
    expected = gradients(tile, everybody).clone()
    order = torch.argsort(make_up(slots, name=f"order {seed}")).to(device)
    moved = Batch(x=tile.x[order], mask=tile.mask[order], y=tile.y[order])
    same = torch.empty(slots, dtype=torch.bool, device=device)
    same[order] = _equal_bits(gradients(moved, everybody), expected[order])
    stay = make_up(slots, name=f"stay {seed}").to(device) < 0
    other = make_up(*tile.x.shape, name=f"others {seed}").to(device) * 1e3
    thinned = _replace(moved, stay, Batch(x=0 * other, mask=torch.zeros_like(tile.mask), y=0 * tile.y))
    replaced = _replace(moved, stay, Batch(x=other, mask=torch.ones_like(tile.mask), y=1 - moved.y))
    for others, filled in ((thinned, stay), (replaced, everybody)):
        rows = gradients(others, filled)
        same[order[stay]] &= _equal_bits(rows[stay], expected[order[stay]])
    return tuple(torch.nonzero(~same).flatten().tolist())


def make_up(*shape: int, name: str) -> Tensor:
    """Return f32[shape] of variance 1, the same wherever the name is: a hash of it, and nobody's chance."""
    drawn = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * math.prod(shape)), "<i4")
    return torch.from_numpy((drawn * (math.sqrt(3) / 2**31)).astype(np.float32)).view(shape)


def _replace(tile: Batch, stay: Tensor, others: Batch) -> Batch:
    """Return the tile with other patients in the slots that do not stay."""
    return Batch(
        x=torch.where(stay[:, None, None, None], tile.x, others.x),
        mask=torch.where(stay[:, None, None, None], tile.mask, others.mask),
        y=torch.where(stay, tile.y, others.y),
    )


def _equal_bits(one: Tensor, other: Tensor) -> Tensor:
    """Return bool[rows], comparing bits: NaN equals NaN."""
    return (one.view(torch.int32) == other.view(torch.int32)).all(dim=1)
