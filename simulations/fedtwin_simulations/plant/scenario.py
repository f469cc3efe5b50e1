"""What can happen to a patient on the ward: six scenarios, each a set of effects on the organs at full severity.

Sizes are clinical round numbers, assumed, chosen so that the signs meet the published ones:
  - sepsis: dilation, leak, weak heart, shunt, fever, insulin resistance     Singer 2016, JAMA 315:801
  - haemorrhage: 40 % of the blood over the hours of bleeding               ATLS, 10th edition 2018, table 3-1
  - respiratory failure: shunt, dead space, shallow breaths, more drive      ARDS: Ashbaugh 1967, Lancet 2:319
  - postoperative: pain, atelectasis, low fever, resistance; all fades       Thorell 1999, Curr Opin Clin Nutr 2:69
  - hypoglycaemia: nothing in the organs; too much insulin for the meals     see `lifestyle`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.physiology import Effects

NONE = dict.fromkeys(Effects._fields, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One course of illness. Volumes in `effects` are per kg of weight. hours: of onset, rise, duration and fading."""

    name: str
    effects: Mapping[str, float]
    onset: tuple[float, float]
    rise: float
    duration: tuple[float, float]
    fade: float


def _scenario(
    name: str,
    onset: tuple[float, float],
    rise: float,
    duration: tuple[float, float],
    fade: float,
    **effects: float,
) -> Scenario:
    return Scenario(
        name=name,
        effects=MappingProxyType({**NONE, **effects}),
        onset=onset,
        rise=rise,
        duration=duration,
        fade=fade,
    )


SCENARIOS = (
    _scenario("stable", (0, 1), 1, (0, 1), 1),
    _scenario(
        "sepsis",
        (0, 20),
        4,
        (24, 60),
        12,
        leak=0.012,
        dilation=0.45,
        weakness=0.3,
        pooled=5.0,
        pain=5,
        shunt=0.15,
        shallow=0.15,
        panting=3,
        fever=2.2,
        burning=0.2,
        resistance=0.5,
        ferment=0.03,
    ),
    _scenario("haemorrhage", (0, 20), 0.5, (4, 12), 0.5, bleeding=0.06, pain=3),
    _scenario(
        "respiratory_failure",
        (0, 20),
        4,
        (24, 60),
        12,
        shunt=0.28,
        dead_space=0.5,
        shallow=0.3,
        panting=4,
        fever=0.8,
        burning=0.1,
        pain=5,
    ),
    _scenario(
        "postoperative",
        (0, 0),
        0.1,
        (2, 8),
        18,
        pain=15,
        shunt=0.08,
        shallow=0.2,
        fever=0.7,
        resistance=0.5,
        pooled=3.0,
    ),
    _scenario("hypoglycaemia", (2, 20), 0.5, (4, 8), 1),
)
NAMES = tuple(scenario.name for scenario in SCENARIOS)
PER_KILOGRAM = ("bleeding", "leak", "pooled")
SHARES = ("dilation", "weakness", "shallow", "depression", "resistance")  # never above 0.8


def make_effects(kind: Array, severity: Array, weight: Array) -> Effects:
    """Return the effects[patients] of scenario number `kind` at `severity`, 1 being the table's."""
    at = {name: np.array([scenario.effects[name] for scenario in SCENARIOS])[kind.astype(int)] for name in NONE}
    values = {name: value * severity * (weight if name in PER_KILOGRAM else 1.0) for name, value in at.items()}
    return Effects(**{name: np.minimum(value, 0.8) if name in SHARES else value for name, value in values.items()})
