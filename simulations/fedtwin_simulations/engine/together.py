"""One step of many small sites at once: the same private step as `fedtwin_client.training`, batched over sites.

Design note: small hospitals cost mostly what it takes to start a computation, so a hundred of them are computed as one:
every weight has a first dimension of sites, every product is one batched product over them, and the forward pass is the
registry's own, run on all sites' patients with each linear layer replaced. What is private stays per patient and per
site: a patient's gradient alone is clipped and rounded to the integer grid, sums are of one site's patients, noise and
sampling come from that site's own stream in the order in which the unbatched step draws them.

Rows are computed in other shapes than at a hospital, so that last bits differ: for simulations only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedtwin_client.cohort import Examples
from fedtwin_client.networks import Network, build_network
from fedtwin_client.randomness import KeyStream
from fedtwin_client.training import grid
from fedtwin_client.training.gradient import sum_losses
from fedtwin_shared.models import Parameters, parameter_shapes
from fedtwin_shared.study import Participant, Study

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One of the sites that are trained together, and its chance."""

    participant: Participant
    examples: Examples
    stream: KeyStream


def train_together(study: Study, members: Sequence[Member], parameters: Parameters) -> list[Parameters]:
    """Return each site's parameters after the study's local steps, all starting from `parameters`.

    - every site's agree with `fedtwin_client.training.train` of that site alone within 1e-5
    - a site draws from its stream what it would draw alone, whoever else is there
    """
    torch.set_num_threads(1)
    training, privacy = study.training, study.privacy
    network, sites = _SiteNetwork(study, parameters, sites=len(members)), len(members)
    weights = network.weights
    start, velocity = weights.clone(), torch.zeros_like(weights)
    expected = np.array([privacy.sampling_rate * one.participant.patients for one in members])
    for number in range(training.local_steps):
        drawn = [np.flatnonzero(one.stream.choices(len(one.examples), rate=privacy.sampling_rate)) for one in members]
        batch = _gather(members, drawn)
        if privacy.mode == "none":
            mean = network.sum_gradients(batch, training.positive_weight) / torch.from_numpy(expected)[:, None].float()
        else:
            mean = _noised_means(study, network, batch, members, expected)
        if training.proximal > 0:
            mean = mean + training.proximal * (weights - start)
        mean = mean + training.weight_decay * weights * network.decays
        velocity = mean if number == 0 else training.momentum * velocity + mean
        weights -= training.learning_rate * velocity
    return [network.extract(place) for place in range(sites)]


def _noised_means(
    study: Study, network: _SiteNetwork, batch: _Batch, members: Sequence[Member], expected: npt.NDArray[np.float64]
) -> Tensor:
    """Return f32[sites, d]: each site's clipped, rounded, summed and noised gradients ÷ its expected batch."""
    privacy, dimension = study.privacy, network.weights.shape[1]
    rows = network.patient_gradients(batch, study.training.positive_weight).numpy()
    factors = grid.clip_factors(grid.measure_norms(rows), clip=privacy.clip)
    factors[~batch.filled.numpy()] = 0.0
    deviation = grid.noise_deviation(dimension, noise_multiplier=privacy.noise_multiplier)
    scale, size = grid.scale(privacy.clip), batch.size
    means = np.empty((len(members), dimension), np.float32)
    for place, one in enumerate(members):
        own, total = slice(place * size, (place + 1) * size), np.zeros(dimension, np.int64)
        grid.accumulate(total, rows[own], factors[own])
        total += grid.draw_noise(one.stream, dimension, deviation=deviation)
        means[place] = total / (scale * expected[place])
    return torch.from_numpy(means)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """x, mask [sites · size, windows, time, features], y and filled [sites · size]: `size` places for each site."""

    x: Tensor
    mask: Tensor
    y: Tensor
    filled: Tensor
    size: int


def _gather(members: Sequence[Member], drawn: Sequence[Rows]) -> _Batch:
    """Return each site's drawn patients in as many places as the largest draw; the others' places stay empty."""
    size = max(1, *(len(rows) for rows in drawn))
    shape = (len(members) * size, *members[0].examples.x.shape[1:])
    x, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
    y, filled = np.zeros(shape[0], np.float32), np.zeros(shape[0], bool)
    for place, (one, rows) in enumerate(zip(members, drawn, strict=True)):
        own = slice(place * size, place * size + len(rows))
        x[own], mask[own], y[own], filled[own] = (
            one.examples.x[rows],
            one.examples.mask[rows],
            one.examples.y[rows],
            True,
        )
    return _Batch(
        x=torch.from_numpy(x),
        mask=torch.from_numpy(mask),
        y=torch.from_numpy(y),
        filled=torch.from_numpy(filled),
        size=size,
    )


class _SiteLinear(nn.Module):
    """A linear layer with weights of its own for each site; it remembers its inputs and pre-activations."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weights, self.offsets = weight, bias  # [sites, o, i], [sites, o]
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return y[patients, …, o] of x[patients, …, i], patients ordered by site."""
        sites = self.weights.shape[0]
        z = x.reshape(sites, -1, x.shape[-1])
        turned = self.weights.transpose(1, 2)
        y = torch.bmm(z, turned) if self.offsets is None else torch.baddbmm(self.offsets[:, None], z, turned)
        if not self.weights.requires_grad:
            y.requires_grad_()
            self.calls.append((z, y))
        return y.view(*x.shape[:-1], y.shape[2])

    def write_rows(self, places: Sequence[Tensor], derivatives: Sequence[Tensor], patients: int) -> None:
        """Write each patient's gradient of the weight, and of the bias, into `places`[patients, numbers]."""
        z = torch.cat([z.detach().reshape(patients, -1, z.shape[2]) for z, _ in self.calls], dim=1)
        d = torch.cat([one.reshape(patients, -1, one.shape[2]) for one in derivatives], dim=1)
        places[0].copy_(torch.bmm(d.transpose(1, 2), z).flatten(1))
        if self.offsets is not None:
            places[1].copy_(d.sum(dim=1))


class _SiteNetwork:
    """The study's network with weights[sites, d], d in the order of the network's own `parameters()`."""

    def __init__(self, study: Study, parameters: Parameters, *, sites: int) -> None:
        self._study, self._network = study, build_network(study, parameters)
        own = dict(self._network.named_parameters())
        flat = torch.cat([one.detach().flatten() for one in own.values()])
        self.weights = flat.repeat(sites, 1)
        self.decays = torch.cat(
            [torch.full((one.numel(),), float(not name.endswith("bias"))) for name, one in own.items()]
        )
        self._columns: dict[Tensor, slice] = {}
        at = 0
        for one in own.values():
            self._columns[one] = slice(at, at + one.numel())
            at += one.numel()
        shapes = parameter_shapes(study)
        self._registry = {name: (self._columns[self._network.parameter(name)], shape) for name, shape in shapes.items()}
        self._linears = [module for module in self._network.modules() if isinstance(module, nn.Linear)]
        self._paths = [name for name, module in self._network.named_modules() if isinstance(module, nn.Linear)]

    def extract(self, place: int) -> Parameters:
        """Return one site's parameters as the registry writes them."""
        numbers = self.weights[place].detach().numpy()
        return {name: numbers[columns].reshape(shape).copy() for name, (columns, shape) in self._registry.items()}

    def sum_gradients(self, batch: _Batch, positive_weight: float) -> Tensor:
        """Return f32[sites, d]: the gradient of each site's sum of losses."""
        weights = self.weights.detach().requires_grad_()
        network, _ = self._build(weights)
        (gradient,) = torch.autograd.grad(_loss(network, batch, positive_weight), weights)
        return gradient

    def patient_gradients(self, batch: _Batch, positive_weight: float) -> Tensor:
        """Return f32[sites · size, d]: each patient's own gradient; empty places hold anything."""
        network, layers = self._build(self.weights)
        loss = _loss(network, batch, positive_weight)
        outputs = [y for layer in layers for _, y in layer.calls]
        derivatives = list(torch.autograd.grad(loss, outputs))
        patients = len(batch.y)
        rows = torch.empty(patients, self.weights.shape[1])
        with torch.no_grad():
            for layer, linear in zip(layers, self._linears, strict=True):
                own = [derivatives.pop(0) for _ in layer.calls]
                layer.write_rows([rows[:, self._columns[one]] for one in linear.parameters()], own, patients)
        return rows

    def _build(self, weights: Tensor) -> tuple[Network, list[_SiteLinear]]:
        """Return the network with every linear layer replaced, and the layers in the order of the network's own."""
        sites, layers = len(weights), []
        for path, linear in zip(self._paths, self._linears, strict=True):
            matrix, *offset = (weights[:, self._columns[one]] for one in linear.parameters())
            layers.append(_SiteLinear(matrix.view(sites, *linear.weight.shape), *offset))
            parent, _, name = path.rpartition(".")
            self._network.get_submodule(parent).register_module(name, layers[-1])
        return self._network, layers


def _loss(network: Network, batch: _Batch, positive_weight: float) -> Tensor:
    logit: Tensor = network(batch.x, batch.mask)
    return sum_losses(logit[batch.filled], batch.y[batch.filled], positive_weight=positive_weight)
