"""One private descent step: every patient clipped and put on the integer grid alone, summed, noised, divided.

    rows f32[slots, d]  ──clip, round──►  i64[d] each  ──sum──►  i64[d]  ──+ noise──►  ÷ expected batch  ──►  optimiser
    (patient gradients)   (`grid`)        grid units                                   (the plan's)

Design note: one patient changes the integer sum by that patient's own vector and by nothing else, because each patient
is sampled alone, is placed in a slot alone, has a row that depends on the slot alone (`patient_gradients`), and is
rounded alone. Everything that does not depend on patients (weight decay, the proximal term, momentum) is applied to the
noised gradient. Rate, steps and denominators are constants of the plan: Opacus would take them from the cohort, which
leaks its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from fedtwin_client.randomness import KeyStream
from fedtwin_client.training import grid
from fedtwin_client.training.batch import Batch
from fedtwin_client.training.patient_gradients import MakeGradients
from fedtwin_client.training.sampling import draw_slots, fill_slots

# Numbers of per-patient gradients held at once: 64 MB. It changes no result but the speed where any slot is the same.
TILE_NUMBERS: Final = 1 << 24
SMALLEST_TILE: Final = 32
# Slots drawn at random fill about half of the tiles that are needed when each slot is wanted by some 8 patients.
PATIENTS_PER_SLOT: Final = 8
TILE_MARGIN: Final = 1.25  # over the expected sample, where tiles have no gaps


class PrivateStep:
    """Patient-level DP-SGD (Abadi et al., CCS 2016) on an integer grid.

    - one patient changes the sum before noise by at most 2^24 + √d / 2 grid units, over all of the patient's windows
    - that patient's integers are the same whatever other patients there are
    - the noise has at least `noise_multiplier` times that sensitivity, whoever was sampled, nobody included
    - a patient whose gradient is not finite counts as zero; how many did is known to this object only
    - `ValueError` for a clip or noise that no study may have, and for an expected batch that is not positive
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        make_gradients: MakeGradients,
        clip: float,
        noise_multiplier: float,
        expected_batch: float,
        positive_weight: float,
        stream: KeyStream,
        before_descent: Callable[[], None],
    ) -> None:
        grid.check_mechanism(clip=clip, noise_multiplier=noise_multiplier)
        if not 0 < expected_batch < math.inf:
            raise ValueError(
                f"expected 0 < expected_batch < ∞, found {expected_batch}: use the plan's sampling_rate · patients"
            )
        self.discarded = 0
        self._optimizer, self._before, self._stream = optimizer, before_descent, stream
        self._gradients = make_gradients(network, positive_weight)
        self._parameters = list(network.parameters())
        self._dimension = sum(parameter.numel() for parameter in self._parameters)
        self._size = _tile_size(expected_batch, self._dimension, any_slot=self._gradients.any_slot)
        self._clip, self._expected = clip, expected_batch
        self._deviation = grid.noise_deviation(self._dimension, noise_multiplier=noise_multiplier)

    @property
    def engine(self) -> str:
        """The name of the engine that computes patients' gradients."""
        return self._gradients.name

    def __call__(self, batch: Batch) -> None:
        """Change the network's parameters in place."""
        total = self.sum_with_noise(batch)
        mean = torch.from_numpy((total / (grid.scale(self._clip) * self._expected)).astype(np.float32))
        start = 0
        for parameter in self._parameters:
            parameter.grad = mean[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()
        self._before()
        self._optimizer.step()

    def sum_with_noise(self, batch: Batch) -> grid.Total:
        """Return the sum with this step's noise, i64[d] in grid units: what may be released, or masked and added up."""
        total = self.sum_patients(batch)
        total += grid.draw_noise(self._stream, self._dimension, deviation=self._deviation)
        return total

    def sum_patients(self, batch: Batch) -> grid.Total:
        """Return the sum of the patients' clipped gradients before noise, i64[d] in grid units; it stays here."""
        if len(batch) > grid.MAXIMUM_PATIENTS:
            raise OverflowError(f"expected at most {grid.MAXIMUM_PATIENTS} patients in a step, found {len(batch)}")
        total = np.zeros(self._dimension, np.int64)
        if self._gradients.any_slot:
            slots = fill_slots(len(batch), size=self._size)
        else:
            slots = draw_slots(len(batch), size=self._size, stream=self._stream)
        for tile, patients in batch.tiles(slots, size=self._size):
            filled = patients >= 0
            rows = self._check_rows(self._gradients(tile, filled)).numpy()
            factors = grid.clip_factors(grid.measure_norms(rows), clip=self._clip)
            factors[~filled.numpy()] = 0.0  # a hostile model could put anything into rows without a patient
            self.discarded += int(filled.sum()) - int(np.count_nonzero(factors))
            grid.accumulate(total, rows, factors)
        return total

    def _check_rows(self, rows: Tensor) -> Tensor:
        """What a crash here would mean: the rows are not patients, and the clip would have bounded something else."""
        expected = (self._size, self._dimension)
        if rows.shape != expected or rows.dtype != torch.float32 or not rows.is_contiguous():
            raise RuntimeError(
                f"expected one contiguous float32 row for each of the tile's patients, {expected}, found "
                f"{rows.dtype} {tuple(rows.shape)}: the engine must sum over a patient's windows and time itself"
            )
        return rows.detach().cpu()


def _tile_size(expected_batch: float, dimension: int, *, any_slot: bool) -> int:
    """Constants of the plan only: were it the sample's size, rows would round by how many patients there are."""
    wanted = expected_batch * TILE_MARGIN if any_slot else expected_batch / PATIENTS_PER_SLOT
    size = SMALLEST_TILE * math.ceil(wanted / SMALLEST_TILE)
    return max(1, min(size, TILE_NUMBERS // dimension))
