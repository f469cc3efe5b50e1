"""The gates of recurrent cells in one pass over memory each, compiled by numba: no compiler at the hospital.

Design note: a kernel goes through rows in an outer loop and through hidden units, the fast dimension, in an inner one
that LLVM vectorises. So a number's path through vector body and remainder is fixed by its column, never by its row, and
a row is bit for bit the same at every place. Buffers come as flat arrays with the length of a row, because only for
those LLVM knows that a row is contiguous. `contract` (fused multiply-add) is the only freedom given to the compiler:
it may not reorder sums and may not assume that numbers are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from fedtwin_client.training.compiled import FLAT, Array, compiled, flatten
from fedtwin_client.training.gates import Steps

# tanh x ≈ x · P(x²) / Q(x²): the minimax fit of Eigen's `generic_fast_tanh_float` (MathFunctionsImpl.h), within 4 units
# in the last place for |x| ≤ 9, where tanh is 1 in float32.
LIMIT: Final = np.float32(7.90531110763549805)
P0, P1, P2 = (np.float32(v) for v in (4.89352455891786e-03, 6.37261928875436e-04, 1.48572235717979e-05))
P3, P4 = (np.float32(v) for v in (5.12229709037114e-08, -8.60467152213735e-11))
P5, P6 = (np.float32(v) for v in (2.00018790482477e-13, -2.76076847742355e-16))
Q0, Q1 = (np.float32(v) for v in (4.89352518554385e-03, 2.26843463243900e-03))
Q2, Q3 = (np.float32(v) for v in (1.18534705686654e-04, 1.19825839466702e-06))
ONE, HALF, ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)


@compiled("float32(float32)")
def _tanh(x: np.float32) -> np.float32:
    x = LIMIT if x > LIMIT else x
    x = -LIMIT if x < -LIMIT else x
    s = x * x
    over = x * (P0 + s * (P1 + s * (P2 + s * (P3 + s * (P4 + s * (P5 + s * P6))))))
    return over / (Q0 + s * (Q1 + s * (Q2 + s * Q3)))


@compiled("float32(float32)")
def _sigmoid(x: np.float32) -> np.float32:
    return HALF + HALF * _tanh(HALF * x)


@compiled("void(float32[::1])")
def _squash_sigmoid(x: Array) -> None:
    for index in range(x.shape[0]):
        x[index] = _sigmoid(x[index])


@compiled("void(float32[::1])")
def _squash_tanh(x: Array) -> None:
    for index in range(x.shape[0]):
        x[index] = _tanh(x[index])


# Short loops over a row that stays in the first cache: with more arrays in one loop LLVM gives up vectorising, because
# it would have to check at run time that none overlaps another.


@compiled(f"void(int64, int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT}, {FLAT})")
def _lstm_forward(
    step: int, rows: int, size: int, wide: int, narrow: int, beside: int, a: Array, c: Array, s: Array, h: Array
) -> None:
    for row in range(step * rows, (step + 1) * rows):
        g, before = a[row * wide : row * wide + 4 * size], c[row * narrow : row * narrow + size]
        after, tanh = c[(row + rows) * narrow : (row + rows) * narrow + size], s[row * narrow : row * narrow + size]
        hidden = h[(row + rows) * beside : (row + rows) * beside + size]
        _squash_sigmoid(g[: 2 * size])
        _squash_tanh(g[2 * size : 3 * size])
        _squash_sigmoid(g[3 * size :])
        i, f, n, o = g[:size], g[size : 2 * size], g[2 * size : 3 * size], g[3 * size :]
        for unit in range(size):
            after[unit] = f[unit] * before[unit] + i[unit] * n[unit]
        for unit in range(size):
            tanh[unit] = _tanh(after[unit])
        for unit in range(size):
            hidden[unit] = o[unit] * tanh[unit]


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT}, {FLAT}, {FLAT})")
def _lstm_backward(
    step: int, rows: int, size: int, wide: int, narrow: int, a: Array, c: Array, s: Array, d_h: Array, d_c: Array
) -> None:
    for place in range(rows):
        row, start = step * rows + place, place * narrow
        g, before = a[row * wide : row * wide + 4 * size], c[row * narrow : row * narrow + size]
        tanh, dh, dc = s[row * narrow : row * narrow + size], d_h[start : start + size], d_c[start : start + size]
        i, f, n, o = g[:size], g[size : 2 * size], g[2 * size : 3 * size], g[3 * size :]
        for unit in range(size):
            enter, forget, candidate, leave, t = i[unit], f[unit], n[unit], o[unit], tanh[unit]
            d = dc[unit] + dh[unit] * leave * (ONE - t * t)
            i[unit] = d * candidate * enter * (ONE - enter)
            f[unit] = d * before[unit] * forget * (ONE - forget)
            n[unit] = d * enter * (ONE - candidate * candidate)
            o[unit] = dh[unit] * t * leave * (ONE - leave)
            dc[unit] = d * forget


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT})")
def _gru_forward(step: int, rows: int, size: int, wide: int, narrow: int, a: Array, u: Array, h: Array) -> None:
    for row in range(step * rows, (step + 1) * rows):
        g, driven = a[row * wide : row * wide + 3 * size], u[row * wide : row * wide + 3 * size]
        before = h[row * narrow : row * narrow + size]
        after = h[(row + rows) * narrow : (row + rows) * narrow + size]
        for unit in range(2 * size):
            g[unit] = _sigmoid(g[unit] + driven[unit])
        r, z, n, inner = g[:size], g[size : 2 * size], g[2 * size :], driven[2 * size :]
        for unit in range(size):
            n[unit] = _tanh(n[unit] + r[unit] * inner[unit])
        for unit in range(size):
            after[unit] = n[unit] + z[unit] * (before[unit] - n[unit])


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT}, {FLAT})")
def _gru_backward(
    step: int, rows: int, size: int, wide: int, narrow: int, a: Array, u: Array, h: Array, d_h: Array
) -> None:
    for place in range(rows):
        row, start = step * rows + place, place * narrow
        g, driven = a[row * wide : row * wide + 3 * size], u[row * wide : row * wide + 3 * size]
        before, dh = h[row * narrow : row * narrow + size], d_h[start : start + size]
        r, z, n, inner = g[:size], g[size : 2 * size], g[2 * size :], driven[2 * size :]
        for unit in range(size):
            reset, keep, candidate, d = r[unit], z[unit], n[unit], dh[unit]
            d_candidate = d * (ONE - keep) * (ONE - candidate * candidate)
            r[unit] = d_candidate * inner[unit] * reset * (ONE - reset)
            z[unit] = d * (before[unit] - candidate) * keep * (ONE - keep)
            n[unit] = d_candidate
            inner[unit] = d_candidate * reset
            dh[unit] = d * keep
        for unit in range(2 * size):
            driven[unit] = g[unit]


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT})")
def _mingru_forward(step: int, rows: int, size: int, wide: int, narrow: int, a: Array, h: Array) -> None:
    for row in range(step * rows, (step + 1) * rows):
        g, before = a[row * wide : row * wide + 2 * size], h[row * narrow : row * narrow + size]
        after = h[(row + rows) * narrow : (row + rows) * narrow + size]
        z, n = g[:size], g[size:]
        _squash_sigmoid(z)
        _squash_tanh(n)
        for unit in range(size):
            after[unit] = before[unit] + z[unit] * (n[unit] - before[unit])


@compiled(f"void(int64, int64, int64, int64, int64, {FLAT}, {FLAT}, {FLAT})")
def _mingru_backward(step: int, rows: int, size: int, wide: int, narrow: int, a: Array, h: Array, d_h: Array) -> None:
    for place in range(rows):
        row, start = step * rows + place, place * narrow
        g, before = a[row * wide : row * wide + 2 * size], h[row * narrow : row * narrow + size]
        dh, z, n = d_h[start : start + size], g[:size], g[size:]
        for unit in range(size):
            update, candidate, d = z[unit], n[unit], dh[unit]
            z[unit] = d * (candidate - before[unit]) * update * (ONE - update)
            n[unit] = d * update * (ONE - candidate * candidate)
            dh[unit] = d * (ONE - update)


class FusedGates:
    """Each step of a cell in one pass; on the CPU only."""

    name = "numba"

    def lstm(
        self, *, gates: Tensor, cell: Tensor, squashed: Tensor, hidden: Tensor, d_hidden: Tensor, d_cell: Tensor
    ) -> Steps:
        """Return a cell, as `gates.Gates` says."""
        a, c, s, h, d_h, d_c = (flatten(part) for part in (gates, cell, squashed, hidden, d_hidden, d_cell))
        shape = (gates.shape[1], cell.shape[2], gates.stride(1), cell.stride(1))
        return _Kernels(
            ahead=(_lstm_forward, (*shape, hidden.stride(1), a, c, s, h)),
            back=(_lstm_backward, (*shape, a, c, s, d_h, d_c)),
        )

    def gru(self, *, gates: Tensor, driven: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """Return a cell, as `gates.Gates` says."""
        a, u, h, d_h = (flatten(part) for part in (gates, driven, hidden, d_hidden))
        shape = (gates.shape[1], hidden.shape[2], gates.stride(1), hidden.stride(1))
        return _Kernels(ahead=(_gru_forward, (*shape, a, u, h)), back=(_gru_backward, (*shape, a, u, h, d_h)))

    def mingru(self, *, gates: Tensor, hidden: Tensor, d_hidden: Tensor) -> Steps:
        """Return a cell, as `gates.Gates` says."""
        a, h, d_h = (flatten(part) for part in (gates, hidden, d_hidden))
        shape = (gates.shape[1], hidden.shape[2], gates.stride(1), hidden.stride(1))
        return _Kernels(ahead=(_mingru_forward, (*shape, a, h)), back=(_mingru_backward, (*shape, a, h, d_h)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernels:
    """A kernel each way and its arguments after the step."""

    ahead: tuple[Callable[..., None], tuple[Any, ...]]
    back: tuple[Callable[..., None], tuple[Any, ...]]

    def forward(self, step: int) -> None:
        kernel, arguments = self.ahead
        kernel(step, *arguments)

    def backward(self, step: int) -> None:
        kernel, arguments = self.back
        kernel(step, *arguments)
