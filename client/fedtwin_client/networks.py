"""The forward passes of the closed registry (`fedtwin_shared.models`): patients in, one logit each out.

Design note: the first dimension is the patient from the input to the loss, in every layer. Windows folded into the
batch would silently make windows, not patients, what is clipped (measured: 3.4 to 4.9 times the allowed sensitivity at
eight windows). Every parameter sits in an `nn.Linear`, whose per-sample gradient sums over all dimensions but the
first; no layer mixes patients, so there is no batch normalisation, and no `nn.Conv1d`, which would need the folding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fedtwin_shared.models import Parameters, parameter_shapes, verify_parameters
from fedtwin_shared.study import Study


class Network(nn.Module, ABC):
    """A model of the registry; `score_windows` is the one thing in which models differ."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__()
        self.study = study
        self.mask_as_input = study.model.mask_as_input
        self._initial = parameters
        self._by_name: dict[str, Tensor] = {}

    def _linear(self, weight: str, bias: str | None) -> nn.Linear:
        """Return a layer with these two parameters of the registry."""
        matrix = torch.from_numpy(np.atleast_2d(self._initial[weight]).copy())
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias is not None, device="meta")
        self._by_name[weight] = layer.weight = nn.Parameter(matrix)
        if bias is not None:
            self._by_name[bias] = layer.bias = nn.Parameter(torch.from_numpy(self._initial[bias].copy()))
        return layer

    def parameter(self, name: str) -> Tensor:
        """Return a parameter by its name in the registry."""
        return self._by_name[name]

    @abstractmethod
    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows] of x[patients, windows, time, inputs]."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logit[patients] of x and mask [patients, windows, time, features].

        - a patient's logit is the mean over the windows in which anything is known
        - a patient of whom nothing is known gets the logit of an input of zeros
        """
        inputs = torch.cat([x, mask.to(x.dtype)], dim=3) if self.mask_as_input else x
        logit = self.score_windows(inputs)
        if logit.shape[1] == 1:
            return logit.squeeze(1)
        known = mask.flatten(2).any(dim=2)
        weight = (known | ~known.any(dim=1, keepdim=True)).to(x.dtype)
        return (logit * weight).sum(dim=1) / weight.sum(dim=1)


class Logistic(Network):
    """Logistic regression on all features of all time steps of a window."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        self.head = self._linear("weight", "bias")

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        logit: Tensor = self.head(x.flatten(2))
        return logit.squeeze(2)


class Perceptron(Network):
    """Layers of tanh on all features of all time steps; bounded activations suit clipping (Papernot, AAAI 2021)."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        names = [f"hidden{layer}" for layer in range(study.model.layers)]
        self.hidden = nn.ModuleList(self._linear(f"{name}.weight", f"{name}.bias") for name in names)
        self.head = self._linear("head.weight", "head.bias")

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        x = x.flatten(2)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        logit: Tensor = self.head(x)
        return logit.squeeze(2)


class Recurrent(Network):
    """Layers of cells that see inputs and the state before; the last time step is read out."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        names = [f"{study.model.name}{layer}" for layer in range(study.model.layers)]
        self.input = nn.ModuleList(self._linear(f"{name}.input", f"{name}.bias") for name in names)
        self.recurrent = nn.ModuleList(self._linear(f"{name}.recurrent", None) for name in names)
        self.head = self._linear("head.weight", "head.bias")

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        for inputs, recurrent in zip(self.input, self.recurrent, strict=True):
            x = self.run_layer(inputs(x), recurrent)
        logit: Tensor = self.head(x[:, :, -1])
        return logit.squeeze(2)

    @staticmethod
    @abstractmethod
    def run_layer(driven: Tensor, recurrent: nn.Module) -> Tensor:
        """Return hidden[patients, windows, time, hidden] of the gates' share of inputs[patients, windows, time, ·]."""


class LongShortTermMemory(Recurrent):
    """LSTM (Hochreiter, Schmidhuber 1997; Gers 2000); gates in the order input, forget, cell, output."""

    @staticmethod
    def run_layer(driven: Tensor, recurrent: nn.Module) -> Tensor:
        """Return hidden[patients, windows, time, hidden]."""
        hidden = cell = driven.new_zeros((*driven.shape[:2], driven.shape[3] // 4))
        states = []
        for step in driven.unbind(dim=2):
            enter, forget, candidate, leave = (step + recurrent(hidden)).chunk(4, dim=2)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
            hidden = torch.sigmoid(leave) * torch.tanh(cell)
            states.append(hidden)
        return torch.stack(states, dim=2)


class GatedRecurrentUnit(Recurrent):
    """GRU (Cho et al. 2014, reset after the product as torch), a bias a gate, in the order reset, keep, candidate."""

    @staticmethod
    def run_layer(driven: Tensor, recurrent: nn.Module) -> Tensor:
        """Return hidden[patients, windows, time, hidden]."""
        hidden = driven.new_zeros((*driven.shape[:2], driven.shape[3] // 3))
        states = []
        for step in driven.unbind(dim=2):
            reset, keep, candidate = step.chunk(3, dim=2)
            from_reset, from_keep, from_candidate = recurrent(hidden).chunk(3, dim=2)
            fresh = torch.tanh(candidate + torch.sigmoid(reset + from_reset) * from_candidate)
            hidden = fresh + torch.sigmoid(keep + from_keep) * (hidden - fresh)
            states.append(hidden)
        return torch.stack(states, dim=2)


class MinimalGatedUnit(Network):
    """minGRU (Feng et al. 2024), whose gates see inputs only, with a bounded candidate; the last step is read out."""

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        names = [f"mingru{layer}" for layer in range(study.model.layers)]
        self.gates = nn.ModuleList(self._linear(f"{name}.weight", f"{name}.bias") for name in names)
        self.head = self._linear("head.weight", "head.bias")

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        for gates in self.gates:
            update, candidate = gates(x).chunk(2, dim=3)
            hidden, states = torch.zeros_like(update[:, :, 0]), []
            for share, fresh in zip(torch.sigmoid(update).unbind(2), torch.tanh(candidate).unbind(2), strict=True):
                hidden = hidden + share * (fresh - hidden)
                states.append(hidden)
            x = torch.stack(states, dim=2)
        logit: Tensor = self.head(x[:, :, -1])
        return logit.squeeze(2)


class TemporalConvolution(Network):
    """Causal convolutions, dilation 2^layer, residual from the second layer on (Bai, Kolter, Koltun 2018).

    The taps of a kernel are concatenated from the present step backwards; the last time step is read out.
    """

    def __init__(self, study: Study, parameters: Parameters) -> None:
        super().__init__(study, parameters)
        self.kernel = study.model.kernel
        names = [f"conv{layer}" for layer in range(study.model.layers)]
        self.convolution = nn.ModuleList(self._linear(f"{name}.weight", f"{name}.bias") for name in names)
        self.head = self._linear("head.weight", "head.bias")

    def score_windows(self, x: Tensor) -> Tensor:
        """Return logit[patients, windows]."""
        for index, layer in enumerate(self.convolution):
            out = torch.relu(layer(_unfold(x, taps=self.kernel, dilation=2**index)))
            x = out if index == 0 else x + out
        logit: Tensor = self.head(x[:, :, -1])
        return logit.squeeze(2)


def _unfold(x: Tensor, *, taps: int, dilation: int) -> Tensor:
    """Return [patients, windows, time, taps · features]: each step beside those before it, zeros before time 0."""
    return torch.cat([pad(x, (0, 0, tap * dilation, 0))[:, :, : x.shape[2]] for tap in range(taps)], dim=3)


_NETWORKS: dict[str, type[Network]] = {
    "logistic": Logistic,
    "mlp": Perceptron,
    "lstm": LongShortTermMemory,
    "gru": GatedRecurrentUnit,
    "mingru": MinimalGatedUnit,
    "tcn": TemporalConvolution,
}


def build_network(study: Study, parameters: Parameters) -> Network:
    """Return the study's model with copies of these parameters.

    Raises `VerificationError` when names, shapes or types do not fit the study, or a number is not finite.
    """
    return _NETWORKS[study.model.name](study, verify_parameters(parameters, parameter_shapes(study)))


def extract_parameters(study: Study, network: Network) -> Parameters:
    """Return copies of the network's parameters as the registry writes them: f32 arrays by name, in its order."""
    return {
        name: network.parameter(name).detach().reshape(shape).numpy().copy()
        for name, shape in parameter_shapes(study).items()
    }
