"""The loss, the layers whose per-patient gradient is exact, and the plain step of simulations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from opacus.layers.dp_rnn import DPRNNBase, RNNLinear
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fedtwin_client.training.batch import Batch


class Step(Protocol):
    """One optimiser step on one batch."""

    def __call__(self, batch: Batch) -> None:
        """Change the network's parameters in place."""
        ...


def sum_losses(logit: Tensor, y: Tensor, *, positive_weight: float) -> Tensor:
    """Return the sum over patients of the logistic loss, patients with the outcome times `positive_weight`."""
    weight = torch.tensor(positive_weight, dtype=logit.dtype)
    return binary_cross_entropy_with_logits(logit, y, pos_weight=weight, reduction="sum")


# What is wrong with a layer and what to use instead, the first kind that fits.
_ADVICE: Mapping[tuple[type[nn.Module], ...], str] = {
    (_BatchNorm,): "it mixes patients: normalise with the public constants of the Signal table",
    (nn.RNNBase, nn.RNNCellBase, DPRNNBase, RNNLinear): "it has no dimension for a patient's windows: use the "
    "registry's lstm, gru or mingru, or `opacus_layers` under Opacus' own PrivacyEngine",
    (_ConvNd,): "windows folded into its batch would be clipped as if they were patients: use the registry's tcn, or "
    "nn.Linear on [patients, windows, time, taps · features]",
    (nn.Module,): "no per-patient gradient of it is known here: use nn.Linear on [patients, windows, …]",
}


def check_layers(network: nn.Module) -> None:
    """Raise `TypeError` unless every parameter sits in a layer whose per-patient gradient is known exactly.

    - batch normalisation and every other layer that mixes patients or keeps buffers is refused, Opacus' own cells too
    - the message says what to use instead
    """
    for name, layer in network.named_modules():
        owns = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        refused = isinstance(layer, _BatchNorm | DPRNNBase) or (owns and type(layer) is not nn.Linear)
        if refused:
            advice = next(words for kinds, words in _ADVICE.items() if isinstance(layer, kinds))
            raise TypeError(f"layer {name or 'network'}: expected nn.Linear, found {type(layer).__name__}: {advice}")


def check_patients(samples: Sequence[Tensor], patients: int) -> None:
    """Raise `RuntimeError` unless every parameter has exactly one gradient for each patient of the batch.

    What a crash here would mean: something folded windows or time into the first dimension, and the clip would have
    bounded those instead of patients.
    """
    for sample in samples:
        if sample.shape[:1] != (patients,):
            raise RuntimeError(
                f"expected one gradient for each of {patients} patients, found {tuple(sample.shape[:1])}: keep the "
                "patient first in every layer, windows and time after it"
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
