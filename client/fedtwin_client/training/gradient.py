"""One descent step, private (Opacus) or plain: the same loss, sampling, denominators and optimiser around both.

Design note: Opacus would take the sampling rate and the expected batch size from the cohort, which leaks its size; both
are constants of the plan here and are passed in. Everything that does not depend on patients (weight decay, the
proximal term, momentum) is applied to the noised gradient, outside the clipping.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.modules.batchnorm import _BatchNorm

from fedtwin_client.training.batch import Batch

# Per-patient gradients held at once, in numbers: 64 MB. A performance knob: it changes rounding, never sensitivity.
CHUNK_NUMBERS = 1 << 24
TILE_PATIENTS = 32  # a step's pieces are a multiple of this: large enough for most samples, by the plan's own figures
TILE_MARGIN = 1.25  # over the expected sample

# Opacus' hooks want the gradient at a layer's output; that no input needs one is as it should be.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")


class Step(Protocol):
    """One optimiser step on one batch."""

    def __call__(self, batch: Batch) -> None:
        """Change the network's parameters in place."""
        ...


def sum_losses(logit: Tensor, y: Tensor, *, positive_weight: float) -> Tensor:
    """Return the sum over patients of the logistic loss, patients with the outcome times `positive_weight`."""
    weight = torch.tensor(positive_weight, dtype=logit.dtype)
    return binary_cross_entropy_with_logits(logit, y, pos_weight=weight, reduction="sum")


def check_layers(network: nn.Module) -> None:
    """Raise `TypeError` unless every parameter sits in a layer whose per-patient gradient is known exactly.

    - batch normalisation and every other layer that mixes patients or keeps buffers is refused
    """
    for name, layer in network.named_modules():
        owns = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        if isinstance(layer, _BatchNorm) or (owns and type(layer) is not nn.Linear):
            raise TypeError(
                f"layer {name or 'network'}: expected nn.Linear, found {type(layer).__name__}: it may mix patients or "
                "has no per-patient gradient; normalise with public constants instead of BatchNorm, write a "
                "convolution or a recurrent cell with nn.Linear on [patients, windows, …]"
            )


class PlainStep:
    """Sum of gradients ÷ expected batch size, no clipping and no noise: simulations only."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        expected_batch: float,
        positive_weight: float,
        before_descent: Callable[[], None],
    ) -> None:
        self._network, self._optimizer, self._before = network, optimizer, before_descent
        self._expected, self._weight = expected_batch, positive_weight

    def __call__(self, batch: Batch) -> None:
        """Change the network's parameters in place."""
        self._optimizer.zero_grad()
        loss = sum_losses(self._network(batch.x, batch.mask), batch.y, positive_weight=self._weight)
        torch.autograd.backward(loss)
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= self._expected
        self._before()
        self._optimizer.step()


class PrivateStep:
    """Patient-level DP-SGD (Abadi et al., CCS 2016): per-patient gradients clipped to `clip`, summed, noised, divided.

    - one patient changes the sum before noise by at most `clip`, over all of the patient's windows
    - a patient's gradient does not depend on how many others there are, not even in its last bit
    - the noise on the sum has standard deviation `noise_multiplier` · `clip`, whoever was sampled, nobody included
    - a patient whose gradient is not finite counts as zero; how many did is known to this object only
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float,
        noise_multiplier: float,
        expected_batch: float,
        positive_weight: float,
        generator: torch.Generator,
        before_descent: Callable[[], None],
    ) -> None:
        for name, value in (
            ("clip", clip),
            ("noise_multiplier", noise_multiplier),
            ("expected_batch", expected_batch),
        ):
            if not 0 < value < math.inf:
                raise ValueError(f"expected 0 < {name} < ∞, found {value}")
        check_layers(network)
        self.discarded = 0
        self._weight = positive_weight
        self._parameters = list(network.parameters())
        # A constant of the plan: were it the sample's size, patients' gradients would round by how many there are.
        expected = TILE_PATIENTS * math.ceil(expected_batch * TILE_MARGIN / TILE_PATIENTS)
        most = CHUNK_NUMBERS // sum(parameter.numel() for parameter in self._parameters)
        self._tile = max(1, min(expected, most))
        self._sampled = GradSampleModule(network, loss_reduction="sum")
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip,
            expected_batch_size=expected_batch,
            loss_reduction="mean",
            generator=generator,
        )
        self._optimizer.attach_step_hook(lambda _: before_descent())

    def __call__(self, batch: Batch) -> None:
        """Change the network's parameters in place."""
        tiles = list(batch.tiles(self._tile))
        for index, (tile, patients) in enumerate(tiles):
            self._optimizer.zero_grad()
            logit = self._sampled(tile.x, tile.mask)[:patients]
            torch.autograd.backward(sum_losses(logit, tile.y[:patients], positive_weight=self._weight))
            samples: list[Tensor] = self._optimizer.grad_samples
            check_patients(samples, self._tile)
            for sample in samples:
                sample[patients:] = 0.0  # rows without a patient; a hostile model could make them NaN
            self.discarded += discard_non_finite(samples)
            # All tiles but the last are clipped and added up only; the noise comes once.
            self._optimizer.signal_skip_step(index < len(tiles) - 1)
            self._optimizer.step()


def check_patients(samples: Sequence[Tensor], patients: int) -> None:
    """Raise `RuntimeError` unless every parameter has exactly one gradient for each patient of the batch.

    What a crash here would mean: something folded windows or time into the first dimension, and the clip would have
    bounded those instead of patients.
    """
    for sample in samples:
        if sample.shape[:1] != (patients,):
            raise RuntimeError(
                f"expected one gradient for each of {patients} patients, found {tuple(sample.shape[:1])}"
            )


def discard_non_finite(samples: Sequence[Tensor]) -> int:
    """Set a patient's gradient to zero, in place, when any number of it is not finite; return how many patients.

    - data never abort a round: an abort would tell that such a patient is here
    - the other patients' gradients do not change
    """
    if all(bool(torch.isfinite(sample.sum())) for sample in samples):
        return 0
    finite = torch.stack([torch.isfinite(sample.flatten(1)).all(dim=1) for sample in samples]).all(dim=0)
    for sample in samples:
        sample[~finite] = 0.0
    return int((~finite).sum())
