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
    """Return a decorator that makes machine code for arguments of these types.

    - it is kept on disk for the next process where a folder can be written, and made anew where none can
    """

    def make(function: Function) -> Function:
        options: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}
        try:
            return cast(Function, njit(signature, cache=True, **options)(function))
        except RuntimeError:  # numba found no folder for its cache, as in a read-only container
            return cast(Function, njit(signature, **options)(function))

    return make


def flatten(rows: Tensor) -> Array:
    """Return the memory of f32[…, rows, width] from its first to its last number, gaps between rows included."""
    numbers = 1 + sum((size - 1) * stride for size, stride in zip(rows.shape, rows.stride(), strict=True))
    flat: Array = rows.as_strided((numbers,), (1,)).numpy()
    return flat
