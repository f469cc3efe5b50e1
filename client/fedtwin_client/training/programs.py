"""Which layers a model of the registry is made of, in order: `networks` again, for chunks of one shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedtwin_client.networks import (
    GatedRecurrentUnit,
    Logistic,
    LongShortTermMemory,
    MinimalGatedUnit,
    Network,
    Perceptron,
    Recurrent,
    TemporalConvolution,
)
from fedtwin_client.training.arithmetic import Arithmetic
from fedtwin_client.training.layers import CausalConvolution, Dense, Layer
from fedtwin_client.training.products import make_rows
from fedtwin_client.training.recurrent_layers import GatedRecurrentUnits, LongShortTermMemoryCells, MinimalGatedUnits


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Of a chunk, and what computes it."""

    steps: int
    rows: int
    arithmetic: Arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A layer, its parameters by the names that the layer gives them, and what it takes of the value before."""

    layer: Layer
    parameters: Mapping[str, Tensor]
    select: Callable[[Tensor], Tensor]


def _whole(value: Tensor) -> Tensor:
    return value


def _last_step(value: Tensor) -> Tensor:
    return value[-1:]


def _flatten_steps(x: Tensor) -> Tensor:
    """Return [1, rows, time · features] of x[time, rows, features]."""
    steps, rows, features = x.shape
    flat = make_rows(x, 1, rows, steps * features)
    flat.view(rows, steps, features).copy_(x.transpose(0, 1))
    return flat


def _dense(linear: nn.Module, shape: Shape, select: Callable[[Tensor], Tensor], *, squash: bool = False) -> Stage:
    assert isinstance(linear, nn.Linear)
    layer = Dense(
        linear.weight, linear.bias, steps=1, rows=shape.rows, products=shape.arithmetic.products, squash=squash
    )
    return Stage(layer=layer, parameters={"weight": linear.weight, "bias": linear.bias}, select=select)


def _logistic(network: Network, shape: Shape) -> list[Stage]:
    assert isinstance(network, Logistic)
    return [_dense(network.head, shape, _flatten_steps)]


def _perceptron(network: Network, shape: Shape) -> list[Stage]:
    assert isinstance(network, Perceptron)
    first, *others = network.hidden
    return [
        _dense(first, shape, _flatten_steps, squash=True),
        *(_dense(linear, shape, _whole, squash=True) for linear in others),
        _dense(network.head, shape, _whole),
    ]


def _recurrent(network: Network, shape: Shape) -> list[Stage]:
    assert isinstance(network, Recurrent)
    make = LongShortTermMemoryCells if isinstance(network, LongShortTermMemory) else GatedRecurrentUnits
    stages = []
    for inputs, recurrent in zip(network.input, network.recurrent, strict=True):
        assert isinstance(inputs, nn.Linear)
        assert isinstance(recurrent, nn.Linear)
        parameters = {"input": inputs.weight, "recurrent": recurrent.weight, "bias": inputs.bias}
        layer = make(
            inputs.weight,
            recurrent.weight,
            inputs.bias,
            steps=shape.steps,
            rows=shape.rows,
            products=shape.arithmetic.products,
            gates=shape.arithmetic.gates,
        )
        stages.append(Stage(layer=layer, parameters=parameters, select=_whole))
    return [*stages, _dense(network.head, shape, _last_step)]


def _minimal(network: Network, shape: Shape) -> list[Stage]:
    assert isinstance(network, MinimalGatedUnit)
    stages = []
    for linear in network.gates:
        assert isinstance(linear, nn.Linear)
        layer = MinimalGatedUnits(
            linear.weight,
            linear.bias,
            steps=shape.steps,
            rows=shape.rows,
            products=shape.arithmetic.products,
            gates=shape.arithmetic.gates,
        )
        stages.append(Stage(layer=layer, parameters={"weight": linear.weight, "bias": linear.bias}, select=_whole))
    return [*stages, _dense(network.head, shape, _last_step)]


def _convolutional(network: Network, shape: Shape) -> list[Stage]:
    assert isinstance(network, TemporalConvolution)
    wanted = [shape.steps - 1]
    stages = [_dense(network.head, shape, _last_step)]
    for index in reversed(range(len(network.convolution))):
        linear = network.convolution[index]
        assert isinstance(linear, nn.Linear)
        layer = CausalConvolution(
            linear.weight,
            linear.bias,
            taps=network.kernel,
            dilation=2**index,
            residual=index > 0,
            wanted=wanted,
            rows=shape.rows,
            products=shape.arithmetic.products,
        )
        wanted = layer.needed
        stages.append(Stage(layer=layer, parameters={"weight": linear.weight, "bias": linear.bias}, select=_whole))
    first = stages[-1]
    steps = torch.tensor(wanted)
    picks = Stage(layer=first.layer, parameters=first.parameters, select=lambda x: x[steps])
    return [picks, *reversed(stages[:-1])]


PROGRAMS: Mapping[type, Callable[[Network, Shape], list[Stage]]] = {
    Logistic: _logistic,
    Perceptron: _perceptron,
    LongShortTermMemory: _recurrent,
    GatedRecurrentUnit: _recurrent,
    MinimalGatedUnit: _minimal,
    TemporalConvolution: _convolutional,
}
