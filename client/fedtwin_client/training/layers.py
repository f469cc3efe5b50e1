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
