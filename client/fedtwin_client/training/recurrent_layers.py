"""The recurrent layers (`layers` says what a layer is): LSTM, GRU and minGRU, backpropagated through time.

The products of all steps with the inputs' weights are one product where the cell allows it; what a step needs of the
step before is one product a step. All patients' gradients are one product each over windows and time
(backpropagation through time, Werbos 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedtwin_client.training.gates import Gates, Steps
from fedtwin_client.training.layers import Columns
from fedtwin_client.training.products import Products, Span, make_rows, merge_steps


class LongShortTermMemoryCells:
    """One layer of an LSTM; parameters `input`, `recurrent`, `bias`, gates in the order input, forget, cell, output.

    Inputs and the state before lie side by side, so that a step is one product with [W | U].
    """

    def __init__(
        self,
        inputs: Tensor,
        recurrent: Tensor,
        bias: Tensor,
        *,
        steps: int,
        rows: int,
        products: Products,
        gates: Gates,
    ) -> None:
        self._input, self._recurrent, self._bias = inputs, recurrent, bias
        self._products, self._patients = products, products.patients()
        hidden, width = recurrent.shape[1], inputs.shape[1]
        self._steps, self._width = steps, width
        self._z = make_rows(bias, steps + 1, rows, width + hidden)
        self._a = make_rows(bias, steps, rows, 4 * hidden)
        self._dh, self._dc = make_rows(bias, rows, hidden), make_rows(bias, rows, hidden)
        self._cells = gates.lstm(
            gates=self._a,
            cell=make_rows(bias, steps + 1, rows, hidden),
            squashed=make_rows(bias, steps, rows, hidden),
            hidden=self._z[:, :, width:],
            d_hidden=self._dh,
            d_cell=self._dc,
        )
        self._multiply = _InputGradient(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return h[time, rows, hidden], as the protocol says."""
        weight = torch.cat([self._input, self._recurrent], dim=1)
        self._z[: self._steps, :, : self._width] = x
        for step in range(self._steps):
            self._products.linear(self._z[step], weight, self._bias, self._a[step])
            self._cells.forward(step)
        return self._z[1:, :, self._width :]

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, as the protocol says."""
        self._dc.zero_()
        _walk_back(self._cells, d, self._dh, steps=self._steps, pass_on=self._pass_on)
        return self._multiply(self._a) if inputs else None

    def _pass_on(self, step: int) -> None:
        torch.mm(self._a[step + 1], self._recurrent, out=self._dh)

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        parts = [(columns["input"], slice(self._width)), (columns["recurrent"], slice(self._width, None))]
        self._patients.write(self._a, self._z[: self._steps], spans, parts, columns["bias"])


class GatedRecurrentUnits:
    """One layer of a GRU; parameters `input`, `recurrent`, `bias`, gates in the order reset, keep, candidate."""

    def __init__(
        self,
        inputs: Tensor,
        recurrent: Tensor,
        bias: Tensor,
        *,
        steps: int,
        rows: int,
        products: Products,
        gates: Gates,
    ) -> None:
        self._input, self._recurrent, self._bias = inputs, recurrent, bias
        self._products, self._patients, self._patients_recurrent = products, products.patients(), products.patients()
        hidden, width = recurrent.shape[1], inputs.shape[1]
        self._steps = steps
        self._x = make_rows(bias, steps, rows, width)
        self._a = make_rows(bias, steps, rows, 3 * hidden)
        self._driven = make_rows(bias, steps, rows, 3 * hidden)
        self._h = make_rows(bias, steps + 1, rows, hidden)
        self._dh = make_rows(bias, rows, hidden)
        self._cells = gates.gru(gates=self._a, driven=self._driven, hidden=self._h, d_hidden=self._dh)
        self._multiply = _InputGradient(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return h[time, rows, hidden], as the protocol says."""
        self._x.copy_(x)
        self._products.linear(merge_steps(self._x), self._input, self._bias, merge_steps(self._a))
        for step in range(self._steps):
            self._products.linear(self._h[step], self._recurrent, None, self._driven[step])
            self._cells.forward(step)
        return self._h[1:]

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, as the protocol says."""
        _walk_back(self._cells, d, self._dh, steps=self._steps, pass_on=self._pass_on)
        return self._multiply(self._a) if inputs else None

    def _pass_on(self, step: int) -> None:
        self._dh.addmm_(self._driven[step + 1], self._recurrent)

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        self._patients.write(self._a, self._x, spans, [(columns["input"], slice(None))], columns["bias"])
        self._patients_recurrent.write(
            self._driven, self._h[: self._steps], spans, [(columns["recurrent"], slice(None))]
        )


class MinimalGatedUnits:
    """One layer of a minGRU, whose gates see inputs only; parameters `weight`, `bias`, order update, candidate."""

    def __init__(
        self, weight: Tensor, bias: Tensor, *, steps: int, rows: int, products: Products, gates: Gates
    ) -> None:
        self._weight, self._bias = weight, bias
        self._products, self._patients = products, products.patients()
        hidden, width = weight.shape[0] // 2, weight.shape[1]
        self._steps = steps
        self._x = make_rows(bias, steps, rows, width)
        self._a = make_rows(bias, steps, rows, 2 * hidden)
        self._h = make_rows(bias, steps + 1, rows, hidden)
        self._dh = make_rows(bias, rows, hidden)
        self._cells = gates.mingru(gates=self._a, hidden=self._h, d_hidden=self._dh)
        self._multiply = _InputGradient(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return h[time, rows, hidden], as the protocol says."""
        self._x.copy_(x)
        self._products.linear(merge_steps(self._x), self._weight, self._bias, merge_steps(self._a))
        for step in range(self._steps):
            self._cells.forward(step)
        return self._h[1:]

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, as the protocol says."""
        _walk_back(self._cells, d, self._dh, steps=self._steps, pass_on=None)
        return self._multiply(self._a) if inputs else None

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        self._patients.write(self._a, self._x, spans, [(columns["weight"], slice(None))], columns["bias"])


def _walk_back(cells: Steps, d: Tensor, d_hidden: Tensor, *, steps: int, pass_on: Callable[[int], None] | None) -> None:
    """Turn every step's activations into gradients, from the last step to the first.

    d[time or 1 last step, rows, hidden]: the gradient at the layer's states. pass_on(step): puts what comes from the
    product of step + 1 into d_hidden, in which the cell left its own share.
    """
    missing = steps - len(d)
    d_hidden.zero_()
    for step in reversed(range(steps)):
        if pass_on is not None and step < steps - 1:
            pass_on(step)
        if step >= missing:
            d_hidden.add_(d[step - missing])
        cells.backward(step)


class _InputGradient:
    """dx = d · W, in rows that are made at the first call: a model's first layer never asks."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._dx: Tensor | None = None

    def __call__(self, d: Tensor) -> Tensor:
        """Return dx[time, rows, inputs] of d[time, rows, k · hidden]."""
        if self._dx is None:
            self._dx = make_rows(d, *d.shape[:2], self._weight.shape[1])
        torch.mm(merge_steps(d), self._weight, out=merge_steps(self._dx))
        return self._dx
