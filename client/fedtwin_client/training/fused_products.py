"""Patients' products compiled by numba: those of many terms around torch's product, those of few without a copy.

A patient's terms (time steps · windows) alone decide which it is, so that others change no bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedtwin_client.training.compiled import FLAT, Array, compiled, flatten
from fedtwin_client.training.products import Columns, Span

# Up to so many terms a product is not worth the copies and the call that it takes; measured on one core.
FEW: Final = 16
PLACES: Final = "int64[:, ::1]"  # numba's name of the type of a matrix of integers
Places = npt.NDArray[np.int64]


@compiled(f"void({PLACES}, int64, int64, int64, int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT})")
def _multiply_few(
    spans: Places,
    steps: int,
    rows: int,
    outputs: int,
    d_stride: int,
    z_stride: int,
    first: int,
    width: int,
    stride: int,
    d: Array,
    z: Array,
    target: Array,
) -> None:
    for patient in range(len(spans)):
        slot, begin, end = spans[patient]
        for output in range(outputs):
            start = slot * stride + output * width
            line = target[start : start + width]
            line[:] = 0.0
            for step in range(steps):
                for row in range(step * rows + begin, step * rows + end):
                    slope = d[row * d_stride + output]
                    other = z[row * z_stride + first : row * z_stride + first + width]
                    for column in range(width):
                        line[column] += slope * other[column]


@compiled(f"void({PLACES}, int64, int64, int64, int64, int64, {FLAT}, {FLAT})")
def _add_few(
    spans: Places, steps: int, rows: int, width: int, d_stride: int, stride: int, d: Array, target: Array
) -> None:
    for patient in range(len(spans)):
        slot, begin, end = spans[patient]
        total = target[slot * stride : slot * stride + width]
        total[:] = 0.0
        for step in range(steps):
            for row in range(step * rows + begin, step * rows + end):
                line = d[row * d_stride : row * d_stride + width]
                for column in range(width):
                    total[column] += line[column]


@compiled(f"void(int64, int64, int64, int64, int64, int64, {FLAT}, {FLAT})")
def _gather(steps: int, rows: int, first: int, end: int, stride: int, width: int, source: Array, target: Array) -> None:
    place = 0
    for step in range(steps):
        for row in range(step * rows + first, step * rows + end):
            line, copy = source[row * stride : row * stride + width], target[place : place + width]
            for column in range(width):
                copy[column] = line[column]
            place += width


@compiled(f"void(int64, int64, int64, {FLAT}, {FLAT})")
def _add_up(terms: int, width: int, start: int, lines: Array, target: Array) -> None:
    total = target[start : start + width]
    total[:] = 0.0
    for term in range(terms):
        line = lines[term * width : (term + 1) * width]
        for column in range(width):
            total[column] += line[column]


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT})")
def _scatter(outputs: int, inputs: int, first: int, width: int, start: int, whole: Array, target: Array) -> None:
    for output in range(outputs):
        line = whole[output * inputs + first : output * inputs + first + width]
        copy = target[start + output * width : start + (output + 1) * width]
        for column in range(width):
            copy[column] = line[column]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buffers:
    """For one number of terms: a patient's two factors and their product, as tensors and as flat arrays."""

    left: Tensor
    right: Tensor
    whole: Tensor
    lines: Array
    others: Array
    product: Array


class FusedProducts:
    """As `products.GatheredProducts`, on the CPU only, and for matrices of one width each."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, int], _Buffers] = {}
        self._left, self._right, self._whole = torch.empty(0), torch.empty(0), torch.empty(0)

    def write(self, d: Tensor, z: Tensor, spans: Sequence[Span], columns: Columns, bias: Tensor | None = None) -> None:
        """Write each patient's products, as `products.PatientProducts` says."""
        steps, rows, outputs = d.shape
        inputs = z.shape[2]
        d_flat, d_stride, z_flat, z_stride = flatten(d), d.stride(1), flatten(z), z.stride(1)
        targets = [(flatten(part), part.stride(0), *place.indices(inputs)[:2]) for part, place in columns]
        biases = None if bias is None else flatten(bias)
        few = [span for span in spans if steps * (span.end - span.first) <= FEW]
        if few:
            own = np.array([(span.slot, span.first, span.end) for span in few], np.int64)
            for target, stride, begin, stop in targets:
                width = stop - begin
                _multiply_few(
                    own, steps, rows, outputs, d_stride, z_stride, begin, width, stride, d_flat, z_flat, target
                )
            if bias is not None and biases is not None:
                _add_few(own, steps, rows, outputs, d_stride, bias.stride(0), d_flat, biases)
        for span in spans if not few else [span for span in spans if steps * (span.end - span.first) > FEW]:
            first, end = span.first, span.end
            terms = steps * (end - first)
            buffers = self._buffers(terms, outputs, inputs)
            _gather(steps, rows, first, end, d_stride, outputs, d_flat, buffers.lines)
            _gather(steps, rows, first, end, z_stride, inputs, z_flat, buffers.others)
            torch.mm(buffers.left, buffers.right, out=buffers.whole)
            for target, stride, begin, stop in targets:
                _scatter(outputs, inputs, begin, stop - begin, span.slot * stride, buffers.product, target)
            if bias is not None and biases is not None:
                _add_up(terms, outputs, span.slot * bias.stride(0), buffers.lines, biases)

    def _buffers(self, terms: int, outputs: int, inputs: int) -> _Buffers:
        """Return the buffers for products of this size."""
        kept = self._kept.get((terms, outputs, inputs))
        if kept is None:
            if max(terms * outputs - len(self._left), terms * inputs - len(self._right)) > 0:
                self._kept.clear()
                self._left, self._right = torch.empty(terms * outputs), torch.empty(terms * inputs)
                self._whole = torch.empty(outputs * inputs)
            left, right = self._left[: terms * outputs], self._right[: terms * inputs]
            kept = self._kept[terms, outputs, inputs] = _Buffers(
                left=left.view(terms, outputs).t(),
                right=right.view(terms, inputs),
                whole=self._whole.view(outputs, inputs),
                lines=left.numpy(),
                others=right.numpy(),
                product=self._whole.numpy(),
            )
        return kept
