"""Each patient's own gradient, whichever engine computes it: the one thing that the private step needs of a network.

Design note: the private step asks for rows and knows nothing of layers; an engine knows layers and nothing of clipping,
noise or optimisers. Rounding that other patients can move is sensitivity that nobody accounts, and a hostile model can
blow it up to any size, so two things are asked of an engine: a row never depends on who is in the other slots (products
of one fixed shape give that), and it is said whether a row depends on the slot it is in. It often does: alignment and
the last rows of a product choose other kernels. Then the step draws every patient's slot by itself, whatever the others
drew; an engine whose rows are the same in every slot gets tiles without gaps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fedtwin_client.training.batch import Batch
from fedtwin_client.training.gradient import check_layers, check_patients, sum_losses

# Opacus' hooks want the gradient at a layer's output; that no input needs one is as it should be.
warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")


class PatientGradients(Protocol):
    """An engine, made for one network and one loss: tiles in, one row of numbers for each slot out.

    - the loss of a patient is `sum_losses` of that patient alone, with the plan's `positive_weight`
    - the network's parameters are read afresh at every call: the optimiser changes them in between
    - a row is bit for bit the same whatever is in the other slots, filled or empty
    """

    @property
    def name(self) -> str:
        """The engine's name, for reports."""
        ...

    @property
    def any_slot(self) -> bool:
        """Whether a row is bit for bit the same in every slot too: tiles are then filled without gaps."""
        ...

    def __call__(self, tile: Batch, filled: Tensor) -> Tensor:
        """Return gradients f32[slots, d] of the patients in a tile; `filled` is bool[slots].

        Tiles have one number of slots for the whole life of an engine. An empty slot is all zeros in the tile, and its
        row may hold anything; a patient's row may hold numbers that are not finite. Columns are the network's
        `parameters()` in their order, each flattened row by row.

        - the tensor is contiguous, belongs to the engine and is overwritten by the next call
        - the network's `grad` fields mean nothing afterwards
        """
        ...


MakeGradients = Callable[[nn.Module, float], PatientGradients]  # network, positive_weight


class OpacusGradients:
    """Opacus' per-sample hooks: every model of `nn.Linear` layers, slow, and the reference for all other engines.

    Raises `TypeError` for a network with any other layer (`check_layers`).
    """

    def __init__(self, network: nn.Module, positive_weight: float) -> None:
        check_layers(network)
        self._parameters = list(network.parameters())
        self._sampled = GradSampleModule(network, loss_reduction="sum")
        self._weight = positive_weight
        self._rows = torch.empty(0)

    @property
    def name(self) -> str:
        """The engine's name."""
        return "opacus"

    @property
    def any_slot(self) -> bool:
        """No: torch's products and element-wise operations round by position (measured)."""
        return False

    def __call__(self, tile: Batch, filled: Tensor) -> Tensor:
        """Return gradients f32[slots, d], as the protocol says."""
        self._sampled.zero_grad(set_to_none=True)  # the samples too
        logit = self._sampled(tile.x, tile.mask)
        torch.autograd.backward(sum_losses(logit, tile.y, positive_weight=self._weight))
        # Opacus hangs the samples onto the parameters, which torch's types do not know.
        samples: Sequence[Tensor] = [getattr(parameter, "grad_sample") for parameter in self._parameters]  # noqa: B009
        check_patients(samples, len(tile))
        if self._rows.shape[0] != len(tile):
            self._rows = torch.empty(len(tile), sum(parameter.numel() for parameter in self._parameters))
        return torch.cat([sample.flatten(1) for sample in samples], dim=1, out=self._rows)
