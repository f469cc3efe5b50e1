"""Who takes part in a step, and where in a tile: each patient alone, whatever the others drew."""

from __future__ import annotations

import numpy as np
import torch

from fedtwin_client.randomness import KeyStream
from fedtwin_client.training.batch import Batch, Slots


def draw_batch(everybody: Batch, *, rate: float, stream: KeyStream) -> Batch:
    """Return a Poisson sample: every patient with probability `rate`, independently of all others.

    - at rate 1 everybody, without a draw
    - the sample may be empty
    """
    drawn = stream.choices(len(everybody), rate=rate)
    return everybody if rate == 1 else everybody.take(torch.from_numpy(drawn))


def draw_slots(patients: int, *, size: int, stream: KeyStream) -> Slots:
    """Return a slot for each patient, uniform and independent: taking one patient away moves nobody else."""
    return (stream.words(patients) % np.uint64(size)).astype(np.int64)


def fill_slots(patients: int, *, size: int) -> Slots:
    """Return slots one after the other, without gaps: only where a row is the same in every slot."""
    return np.arange(patients, dtype=np.int64) % size
