"""One set of equations, two engines: plain numpy over patients, and a loop over patients that numba compiles.

Design note: an equation is a function of numbers that is written with arithmetic and numpy's element-wise functions
only (no `if`, no indexing), so it means the same for one patient's scalars and for arrays over patients.
`compilable` leaves the function as it is and lets compiled code call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable
from numba.np.unsafe.ndarray import to_fixed_tuple

Array = npt.NDArray[np.float64]
Equation = TypeVar("Equation", bound=Callable[..., Any])

to_tuple: Any = to_fixed_tuple  # (array, its length) -> tuple, in compiled code only
_config: Any = numba.config


def compilable(equation: Equation) -> Equation:
    """Return `equation` itself, which compiled code may call from now on."""
    register_jitable(equation)
    return equation


def compile_loop(loop: Callable[..., None]) -> Callable[..., None]:
    """Return `loop` as machine code, kept on disk beside its source for the next process.

    - no code is kept longer than any source of the plant: numba looks only at the file that holds the loop, so the
      folder is named by a digest of all of them
    """
    folder, config = Path(__file__).parent, _config
    sources = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()
    former, config.CACHE_DIR = config.CACHE_DIR, str(folder / "__pycache__" / sources[:16])
    try:
        compiled: Callable[..., None] = numba.njit(loop, cache=True)
    finally:
        config.CACHE_DIR = former
    return compiled
