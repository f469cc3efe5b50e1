"""Python compiled by numba for flat arrays of float32: one thread, no reordering of sums, no assumption on numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit
from torch import Tensor

Array = npt.NDArray[np.float32]
Function = TypeVar("Function", bound=Callable[..., Any])
FLAT: Final = "float32[::1]"  # numba's name of the type of a contiguous vector


def compiled(signature: str) -> Callable[[Function], Function]:
    """Return a decorator that makes machine code for arguments of these types, once for a machine: it stays on disk."""
    make = njit(signature, cache=True, fastmath={"contract"}, error_model="numpy", nogil=True)
    return cast(Callable[[Function], Function], make)


def flatten(rows: Tensor) -> Array:
    """Return the memory of f32[…, rows, width] from its first to its last number, gaps between rows included."""
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))
    flat: Array = rows.as_strided((numbers,), (1,)).numpy()
    return flat
