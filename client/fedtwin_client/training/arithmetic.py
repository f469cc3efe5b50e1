"""What an engine computes with on this machine, and which is fastest."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from fedtwin_client.training.gates import Gates, TorchGates
from fedtwin_client.training.products import (
    GatheredProducts,
    MatrixProducts,
    OneDnnProducts,
    PatientProducts,
    Products,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Gates and products. A performance knob: it changes rounding, never what is computed."""

    name: str
    gates: Gates
    products: Products


TORCH = Arithmetic(name="torch", gates=TorchGates(), products=MatrixProducts())


@functools.cache  # one object each for a process: what was measured about one is kept by it
def available_arithmetic() -> tuple[Arithmetic, ...]:
    """Return what runs here on the CPU, the fastest first, as `fedtwin simulate bench private-step` measured them."""
    if importlib.util.find_spec("numba") is None:
        return (*_with_onednn("torch", TORCH.gates, GatheredProducts), TORCH)
    from fedtwin_client.training.fused_gates import FusedGates
    from fedtwin_client.training.fused_products import FusedProducts

    gates = FusedGates()
    fused = Arithmetic(name="numba", gates=gates, products=MatrixProducts(patients=FusedProducts))
    return (fused, *_with_onednn("numba", gates, FusedProducts), TORCH)


def _with_onednn(name: str, gates: Gates, patients: Callable[[], PatientProducts]) -> tuple[Arithmetic, ...]:
    if not OneDnnProducts.is_available():
        return ()
    return (Arithmetic(name=f"{name}+onednn", gates=gates, products=OneDnnProducts(patients=patients)),)
