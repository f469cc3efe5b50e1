"""The two kinds of matrix product that training needs: of all rows with one weight, and of each patient with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The rows [first, end) of a chunk are the windows of the patient in `slot` of the tile."""

    slot: int
    first: int
    end: int


def make_rows(like: Tensor, *shape: int) -> Tensor:
    """Return zeros[…, width] whose rows all start at a multiple of 64 bytes, of the type and on the device of `like`.

    MKL rounds a row by its alignment: with rows of any other length, a patient's numbers would depend on the patient's
    place among the others (measured, and tested).
    """
    *outer, width = shape
    return like.new_zeros(*outer, -(-width // 16) * 16)[..., :width]


def merge_steps(x: Tensor) -> Tensor:
    """Return x[time, rows, width] as [time · rows, width], the same memory; raises `RuntimeError` where it cannot."""
    return x.view(-1, x.shape[2])


Columns = Sequence[tuple[Tensor, slice]]


class PatientProducts(Protocol):
    """Each patient's product over all of the patient's windows and time steps: Σ d · zᵀ, and Σ d for a bias.

    - where a patient sits in a chunk or in a tile changes no bit
    """

    def write(self, d: Tensor, z: Tensor, spans: Sequence[Span], columns: Columns, bias: Tensor | None = None) -> None:
        """Write G[slot] = Σ over steps and rows of d[·, o] z[·, i]ᵀ, and bias[slot] = Σ d[·, o], for each patient.

        d[time, rows, o], z[time, rows, i]: `make_rows`; `columns`: parts[slots, o · width] of the gradients, each with
        its slice of z's last dimension; bias[slots, o].
        """
        ...


class GatheredProducts:
    """Plain torch, on any device.

    Every patient's numbers are first gathered into buffers that start at the same place for everybody, and multiplied
    in one product whose size is the patient's own.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int], Tensor] = {}

    def write(self, d: Tensor, z: Tensor, spans: Sequence[Span], columns: Columns, bias: Tensor | None = None) -> None:
        """Write each patient's products, as the protocol says."""
        steps, outputs, inputs = d.shape[0], d.shape[2], z.shape[2]
        whole = self._buffer("whole", (outputs, inputs), d)
        for span in spans:
            terms = steps * (span.end - span.first)
            left, right = self._buffer("left", (terms, outputs), d), self._buffer("right", (terms, inputs), z)
            left.view(steps, -1, outputs).copy_(d[:, span.first : span.end])
            right.view(steps, -1, inputs).copy_(z[:, span.first : span.end])
            torch.mm(left.t(), right, out=whole)
            for rows, part in columns:
                rows[span.slot].view(outputs, -1).copy_(whole[:, part])
            if bias is not None:
                torch.sum(left, dim=0, out=bias[span.slot])

    def _buffer(self, name: str, shape: tuple[int, int], like: Tensor) -> Tensor:
        """Return the start of one piece of memory for each name and width."""
        kept = self._buffers.get((name, shape[1]))
        if kept is None or len(kept) < shape[0]:
            kept = self._buffers[name, shape[1]] = like.new_empty(shape)
        return kept[: shape[0]]


class Products(Protocol):
    """Matrix products. None may choose its algorithm by what the numbers are or by how many patients there are."""

    @property
    def patients(self) -> Callable[[], PatientProducts]:
        """What makes the patients' products of one layer."""
        ...

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out[rows, o] = x[rows, i] · weight[o, i]ᵀ + bias[o]; x and out are `make_rows`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixProducts:
    """torch's own (MKL on x86, cuBLAS on CUDA)."""

    patients: Callable[[], PatientProducts] = GatheredProducts

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """As the protocol says."""
        if bias is None:
            torch.mm(x, weight.t(), out=out)
        else:
            torch.addmm(bias, x, weight.t(), out=out)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneDnnProducts:
    """oneDNN's, through an operation of torch that has no public name; `is_available` says whether it is there."""

    patients: Callable[[], PatientProducts] = GatheredProducts

    @staticmethod
    def is_available() -> bool:
        """Whether this build of torch has the operation and computes with it what `linear` promises."""
        if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
            return False
        x, weight, bias, out = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4), torch.empty(2, 4)
        try:
            OneDnnProducts().linear(x, weight, bias, out)
        except (RuntimeError, TypeError):  # another version of torch with other arguments
            return False
        return bool((out == 4).all())

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """As the protocol says."""
        out.copy_(torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))
