"""Layers that keep (inputs, gradients at pre-activations) and make of them each patient's own gradient.

Every layer works on one chunk: rows[time, rows, features], a row being one window of one patient, with one number of
rows for its whole life. `forward` keeps what `backward` needs in buffers that are made once; `backward` computes no
weight gradient; `write` does, for each patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedtwin_client.training.gates import Gates
from fedtwin_client.training.products import Products, Span, make_rows, merge_steps

Columns = Mapping[str, Tensor]  # of the gradients, for each parameter of the layer: [slots, numbers]


class Layer(Protocol):
    """One piece of a model. `forward`, then `backward`, then `write`, for the same chunk."""

    def forward(self, x: Tensor) -> Tensor:
        """Return y[time, rows, o] of x[time, rows, i]; it belongs to the layer."""
        ...

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, where `inputs` asks for it, of the gradient at y[time or 1 last step, rows, o]."""
        ...

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write the gradients of the chunk's patients into their slots."""
        ...


class Dense:
    """y = activation(W x + b) at every step; parameters `weight`, `bias`; activation `tanh` (bounded) or none."""

    def __init__(
        self, weight: Tensor, bias: Tensor, *, steps: int, rows: int, products: Products, squash: bool = False
    ) -> None:
        self._weight, self._bias, self._products, self._squash = weight, bias, products, squash
        self._patients = products.patients()
        self._y = make_rows(weight, steps, rows, weight.shape[0])
        self._d = make_rows(weight, *self._y.shape)
        self._dx = make_rows(weight, steps, rows, weight.shape[1])
        self._x = self._dx

    def forward(self, x: Tensor) -> Tensor:
        """Return y, as the protocol says; x must stay as it is until `write`."""
        self._x = x
        self._products.linear(merge_steps(x), self._weight, self._bias, merge_steps(self._y))
        return self._y.tanh_() if self._squash else self._y

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, as the protocol says."""
        if self._squash:
            torch.mul(self._y, self._y, out=self._d)
            self._d.neg_().add_(1).mul_(d)
        else:
            self._d.copy_(d)
        if inputs:
            torch.mm(merge_steps(self._d), self._weight, out=merge_steps(self._dx))
            return self._dx
        return None

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        self._patients.write(self._d, self._x, spans, [(columns["weight"], slice(None))], columns["bias"])


class LongShortTermMemoryCells:
    """One layer of an LSTM; parameters `input`, `recurrent`, `bias`, gates in the order input, forget, cell, output.

    Inputs and the state before lie side by side, so that a step is one product with [W | U], and all patients'
    gradients of both are one product each over windows and time (backpropagation through time, Werbos 1990).
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
        self._dx: Tensor | None = None

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
        missing = self._steps - len(d)
        self._dc.zero_()
        for step in reversed(range(self._steps)):
            if step == self._steps - 1:
                self._dh.copy_(d[-1])
            else:
                torch.mm(self._a[step + 1], self._recurrent, out=self._dh)
                if step >= missing:
                    self._dh.add_(d[step - missing])
            self._cells.backward(step)
        return self._input_gradient() if inputs else None

    def _input_gradient(self) -> Tensor:
        if self._dx is None:
            self._dx = make_rows(self._a, *self._a.shape[:2], self._width)
        torch.mm(merge_steps(self._a), self._input, out=merge_steps(self._dx))
        return self._dx

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
        self._dx: Tensor | None = None

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
        missing = self._steps - len(d)
        self._dh.zero_()
        for step in reversed(range(self._steps)):
            if step < self._steps - 1:
                self._dh.addmm_(self._driven[step + 1], self._recurrent)
            if step >= missing:
                self._dh.add_(d[step - missing])
            self._cells.backward(step)
        if not inputs:
            return None
        if self._dx is None:
            self._dx = make_rows(self._x, *self._x.shape)
        torch.mm(merge_steps(self._a), self._input, out=merge_steps(self._dx))
        return self._dx

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
        self._dx: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return h[time, rows, hidden], as the protocol says."""
        self._x.copy_(x)
        self._products.linear(merge_steps(self._x), self._weight, self._bias, merge_steps(self._a))
        for step in range(self._steps):
            self._cells.forward(step)
        return self._h[1:]

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x, as the protocol says."""
        missing = self._steps - len(d)
        self._dh.zero_()
        for step in reversed(range(self._steps)):
            if step >= missing:
                self._dh.add_(d[step - missing])
            self._cells.backward(step)
        if not inputs:
            return None
        if self._dx is None:
            self._dx = make_rows(self._x, *self._x.shape)
        torch.mm(merge_steps(self._a), self._weight, out=merge_steps(self._dx))
        return self._dx

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        self._patients.write(self._a, self._x, spans, [(columns["weight"], slice(None))], columns["bias"])


class CausalConvolution:
    """y = relu(W · [x at t, t - d, …] + b), + x where `residual`; parameters `weight`, `bias`; d is the dilation.

    Only the steps `wanted` are computed, and their inputs only are looked at: `needed`. A model that reads out the last
    step needs few others.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        taps: int,
        dilation: int,
        residual: bool,
        wanted: Sequence[int],
        rows: int,
        products: Products,
    ) -> None:
        self._weight, self._bias, self._residual, self._products = weight, bias, residual, products
        self._patients, self._wanted = products.patients(), list(wanted)
        self.needed = needed_steps(wanted, taps=taps, dilation=dilation)
        at = {step: index for index, step in enumerate(self.needed)}
        width = weight.shape[1] // taps
        self._same = [at[step] for step in wanted]
        # (place in y, columns of that tap, place in x), for every tap that is not before time 0
        self._taps = [
            (place, slice(tap * width, (tap + 1) * width), at[step - tap * dilation])
            for place, step in enumerate(wanted)
            for tap in range(taps)
            if step - tap * dilation >= 0
        ]
        self._unfolded = make_rows(weight, len(wanted), rows, weight.shape[1])
        self._y = make_rows(weight, len(wanted), rows, weight.shape[0])
        self._out, self._d = make_rows(weight, *self._y.shape), make_rows(weight, *self._y.shape)
        self._d_unfolded = make_rows(weight, *self._unfolded.shape)
        self._dx = make_rows(weight, len(self.needed), rows, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return y[wanted, rows, o] of x[needed, rows, i]."""
        for place, columns, source in self._taps:
            self._unfolded[place, :, columns] = x[source]
        self._products.linear(merge_steps(self._unfolded), self._weight, self._bias, merge_steps(self._y))
        self._y.relu_()
        if not self._residual:
            return self._y
        for place, source in enumerate(self._same):
            torch.add(self._y[place], x[source], out=self._out[place])
        return self._out

    def backward(self, d: Tensor, *, inputs: bool) -> Tensor | None:
        """Return the gradient at x[needed], of that at y[wanted]."""
        torch.mul(d, self._y > 0, out=self._d)
        if not inputs:
            return None
        torch.mm(merge_steps(self._d), self._weight, out=merge_steps(self._d_unfolded))
        self._dx.zero_()
        for place, columns, source in self._taps:
            self._dx[source] += self._d_unfolded[place, :, columns]
        if self._residual:
            for place, source in enumerate(self._same):
                self._dx[source] += d[place]
        return self._dx

    def write(self, spans: Sequence[Span], columns: Columns) -> None:
        """Write each patient's gradients, as the protocol says."""
        self._patients.write(self._d, self._unfolded, spans, [(columns["weight"], slice(None))], columns["bias"])


def needed_steps(wanted: Sequence[int], *, taps: int, dilation: int) -> list[int]:
    """Return, in order, the time steps that a causal convolution looks at for the steps `wanted`.

    >>> needed_steps([7], taps=3, dilation=2)
    [3, 5, 7]
    """
    return sorted({step - tap * dilation for step in wanted for tap in range(taps) if step >= tap * dilation})
