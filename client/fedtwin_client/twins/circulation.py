"""Heart rate, stroke volume and resistance in logarithms, where Ohm's law of the circulation is a sum.

    ln mean pressure = ln heart rate + ln stroke volume + ln resistance + constant      (Guyton: pressure = output · R)
    rate'       = -(rate - own rate) / 20 - reflex · (pressure - own pressure) / 20      baroreflex on the heart
    resistance' = -(resistance - what the own rate and pressure need) / 60
    ln systolic = ln mean pressure + pulse;   pulse grows with stroke volume (windkessel: Frank 1899)
The reflex of the vessels is in `resistance`, slowly; an arm of it that reads the pressure of the moment would break the
cascade, and at one reading in minutes nobody could tell the two apart.
Sizes of noise were chosen by the likelihood of forecasts on virtual patients of seeds that no figure is of.
"""

from __future__ import annotations

import math
from typing import Final

from fedtwin_client.twins.block import Block, Channel, State, Term

OHM: Final = (
    "Guyton, Coleman, Granger 1972, Annu Rev Physiol 34:13 (pressure = output · resistance; long-term set point)"
)
REFLEX: Final = "La Rovere 1998, Lancet 351:478 (baroreflex sensitivity); Ottesen 1997, Math Biosci 141:1 (model)"
WINDKESSEL: Final = "Westerhof 2009, Med Biol Eng Comput 47:131 (two-element windkessel)"

HEART: Final = math.log(80.0)  # 1/min
PRESSURE: Final = math.log(85.0)  # mmHg
PULSE: Final = math.log(125.0 / 85.0)
FAST, SLOW = 1 / 20, 1 / 60  # 1/min
REFLEX_GAIN: Final = 0.5  # share by which heart rate rises for a share by which pressure falls
STIFFNESS: Final = 0.3  # of the pulse for stroke volume, both in logarithms
DAY: Final = 1440.0
HOURS: Final = 120.0  # within which pain, fever and work move the heart's set point


def _pressure(signal: str, noise: float, *, systolic: bool) -> Channel:
    weights = {"heart": 1.0, "stroke": 1.0 + (STIFFNESS if systolic else 0.0), "resistance": 1.0}
    return Channel(
        signal=signal,
        weights={**weights, "pulse": 1.0} if systolic else weights,
        transform="log",
        noise=noise,
    )


CIRCULATION = Block(
    name="circulation",
    states=(
        State(name="heart", rate=FAST, home=0.0, noise=0.1, prior=0.2, low=2, high=6),
        State(name="stroke", rate=SLOW, home=0.0, noise=0.11, prior=0.11, low=-3, high=3),
        State(name="resistance", rate=SLOW, home=0.0, noise=0.02, prior=0.1, low=-5, high=5),
        State(name="pulse", rate=1 / DAY, home=PULSE, noise=0.08, prior=0.1, low=0, high=1.5),
        State(name="own_rate", rate=1 / HOURS, home=HEART, noise=0.25, prior=0.25, low=3, high=5.5),
        State(name="own_pressure", rate=1 / (2 * DAY), home=PRESSURE, noise=0.1, prior=0.1, low=3, high=5.5),
    ),
    inputs=(),
    terms=(
        Term(to="heart", coefficient=FAST, a="own_rate"),
        *(Term(to="heart", coefficient=-FAST * REFLEX_GAIN, a=name) for name in ("heart", "stroke", "resistance")),
        Term(to="heart", coefficient=FAST * REFLEX_GAIN, a="own_pressure"),
        Term(to="resistance", coefficient=SLOW, a="own_pressure"),
        Term(to="resistance", coefficient=-SLOW, a="own_rate"),
    ),
    channels=(
        Channel(signal="heart_rate", weights={"heart": 1.0}, transform="log", noise=2.5),
        _pressure("mean_pressure", 5.0, systolic=False),
        _pressure("cuff_mean", 5.0, systolic=False),
        _pressure("arterial_mean", 3.0, systolic=False),
        _pressure("systolic_pressure", 5.0, systolic=True),
        _pressure("cuff_systolic", 5.0, systolic=True),
        _pressure("arterial_systolic", 3.0, systolic=True),
    ),
    step=15.0,
    sources=(OHM, REFLEX, WINDKESSEL),
)
