"""What an engine computes with on this machine, and which is fastest."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from fedtwin_client.training.gates import Gates, TorchGates
from fedtwin_client.training.products import MatrixProducts, OneDnnProducts, Products


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Gates and products. A performance knob: it changes rounding, never what is computed."""

    name: str
    gates: Gates
    products: Products


TORCH = Arithmetic(name="torch", gates=TorchGates(), products=MatrixProducts())


def available_arithmetic() -> tuple[Arithmetic, ...]:
    """Return what runs here on the CPU, the fastest first, as `fedtwin simulate bench private-step` measured them."""
    found = [TORCH]
    gates: Gates = TORCH.gates
    if importlib.util.find_spec("numba") is not None:
        from fedtwin_client.training.fused_gates import FusedGates

        gates = FusedGates()
        found.insert(0, Arithmetic(name="numba", gates=gates, products=MatrixProducts()))
    if OneDnnProducts.is_available():
        found.insert(len(found) - 1, Arithmetic(name=f"{gates.name}+onednn", gates=gates, products=OneDnnProducts()))
    return tuple(found)
