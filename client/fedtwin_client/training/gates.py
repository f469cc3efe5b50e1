"""The element-wise half of recurrent cells, one time step at a time, on rows: forward, and backward in place.

Shapes: gates[time, rows, k · hidden], states[1 + time, rows, hidden], where state 0 is all zeros; d_hidden and
d_cell[rows, hidden] hold the gradient at a step's state when `backward` begins. A row is one patient's one window; no
operation here lets two rows meet. Forward turns pre-activations into activations; backward turns activations into
gradients at pre-activations, and d_hidden, d_cell into what passes to the step before beside the recurrent product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Steps(Protocol):
    """A cell bound to its buffers: `forward` from step 0 on, then `backward` from the last step on."""

    def forward(self, step: int) -> None:
        """Compute state step + 1."""
        ...

    def backward(self, step: int) -> None:
        """Turn this step's activations into gradients."""
        ...


class Gates(Protocol):
    """Arithmetic of the cells; all tensors are `make_rows` and are kept."""

    @property
    def name(self) -> str:
        """Its name, for reports."""
        ...

    def lstm(
        self, *, gates: Tensor, cell: Tensor, squashed: Tensor, hidden: Tensor, d_hidden: Tensor, d_cell: Tensor
    ) -> Steps:
        """c = f · c₋ + i · g, h = o · tanh c (Hochreiter, Schmidhuber 1997; Gers 2000); gates in the order i, f, g, o.

        squashed[time, rows, hidden] keeps tanh c.
        """
        ...

    def gru(self, *, gates: Tensor, driven: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """n = tanh(Wx + b + r · Uh₋), h = n + z · (h₋ - n) (Cho et al. 2014, as torch); gates in the order r, z, n.

        gates holds Wx + b and driven, of the same shape, Uh₋; then the gradients at both.
        """
        ...

    def mingru(self, *, gates: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """h = h₋ + z · (n - h₋) with z = sigmoid, n = tanh of gates alone (Feng et al. 2024); in the order z, n."""
        ...


class TorchGates:
    """Plain torch operations, on any device."""

    name = "torch"

    def lstm(
        self, *, gates: Tensor, cell: Tensor, squashed: Tensor, hidden: Tensor, d_hidden: Tensor, d_cell: Tensor
    ) -> Steps:
        """Return a cell, as the protocol says."""
        return _Lstm(gates=gates, cell=cell, squashed=squashed, hidden=hidden, d_hidden=d_hidden, d_cell=d_cell)

    def gru(self, *, gates: Tensor, driven: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """Return a cell, as the protocol says."""
        return _Gru(gates=gates, driven=driven, hidden=hidden, d_hidden=d_hidden)

    def mingru(self, *, gates: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """Return a cell, as the protocol says."""
        return _Mingru(gates=gates, hidden=hidden, d_hidden=d_hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lstm:
    gates: Tensor
    cell: Tensor
    squashed: Tensor
    hidden: Tensor
    d_hidden: Tensor
    d_cell: Tensor

    def forward(self, step: int) -> None:
        size, cell, after = self.cell.shape[2], self.cell[step], self.cell[step + 1]
        enter, forget, candidate, leave = torch.split(self.gates[step], size, dim=1)
        self.gates[step, :, : 2 * size].sigmoid_()
        candidate.tanh_()
        leave.sigmoid_()
        torch.mul(forget, cell, out=after)
        after.addcmul_(enter, candidate)
        torch.tanh(after, out=self.squashed[step])
        torch.mul(leave, self.squashed[step], out=self.hidden[step + 1])

    def backward(self, step: int) -> None:
        enter, forget, candidate, leave = torch.split(self.gates[step], self.cell.shape[2], dim=1)
        tanh, d_hidden, d_cell = self.squashed[step], self.d_hidden, self.d_cell
        d_cell.add_(d_hidden * leave * (1 - tanh * tanh))
        d_enter = d_cell * candidate * enter * (1 - enter)
        d_candidate = d_cell * enter * (1 - candidate * candidate)
        d_forget = d_cell * self.cell[step] * forget * (1 - forget)
        leave.copy_(d_hidden * tanh * leave * (1 - leave))
        d_cell.mul_(forget)
        forget.copy_(d_forget)
        enter.copy_(d_enter)
        candidate.copy_(d_candidate)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gru:
    gates: Tensor
    driven: Tensor
    hidden: Tensor
    d_hidden: Tensor

    def forward(self, step: int) -> None:
        size, driven = self.hidden.shape[2], self.driven[step]
        both, candidate = torch.split(self.gates[step], [2 * size, size], dim=1)
        both.add_(driven[:, : 2 * size]).sigmoid_()
        candidate.addcmul_(both[:, :size], driven[:, 2 * size :]).tanh_()
        torch.lerp(candidate, self.hidden[step], both[:, size:], out=self.hidden[step + 1])

    def backward(self, step: int) -> None:
        size, d_hidden = self.hidden.shape[2], self.d_hidden
        reset, keep, candidate = torch.split(self.gates[step], size, dim=1)
        inner = self.driven[step, :, 2 * size :]
        d_candidate = d_hidden * (1 - keep) * (1 - candidate * candidate)
        d_keep = d_hidden * (self.hidden[step] - candidate) * keep * (1 - keep)
        d_reset = d_candidate * inner * reset * (1 - reset)
        d_hidden.mul_(keep)
        inner.copy_(d_candidate * reset)
        reset.copy_(d_reset)
        keep.copy_(d_keep)
        candidate.copy_(d_candidate)
        self.driven[step, :, : 2 * size].copy_(self.gates[step, :, : 2 * size])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mingru:
    gates: Tensor
    hidden: Tensor
    d_hidden: Tensor

    def forward(self, step: int) -> None:
        update, candidate = torch.split(self.gates[step], self.hidden.shape[2], dim=1)
        update.sigmoid_()
        candidate.tanh_()
        torch.lerp(self.hidden[step], candidate, update, out=self.hidden[step + 1])

    def backward(self, step: int) -> None:
        update, candidate = torch.split(self.gates[step], self.hidden.shape[2], dim=1)
        d_candidate = self.d_hidden * update * (1 - candidate * candidate)
        d_update = self.d_hidden * (candidate - self.hidden[step]) * update * (1 - update)
        self.d_hidden.mul_(1 - update)
        update.copy_(d_update)
        candidate.copy_(d_candidate)
