"""Oxygen and breathing: the pressure of oxygen in blood follows the alveolus less an impairment; hypoxia drives breath.

ln alveolar pressure = from inspired oxygen by the alveolar gas equation, at 40 mmHg of carbon dioxide
oxygen' = -(oxygen - ln alveolar + impairment) / 10             oxygen: ln of arterial pressure
breath' = -(breath - own breath) / 15 - drive · (oxygen - usual) / 15
logit saturation = 2.7 · (oxygen - ln 26.8)                      Hill's curve: a line in these coordinates
ln carbon dioxide = ln 40 - half of (breath - own breath) + offset
"""

from __future__ import annotations

import math
from typing import Final

from fedtwin_client.twins.block import Block, Channel, Input, State, Term

ALVEOLUS: Final = "Fenn, Rahn, Otis 1946, Am J Physiol 146:637 (alveolar gas equation)"
HILL: Final = "Hill 1910, J Physiol 40:iv; exponent 2.7 and half saturation 26.8 mmHg: Severinghaus 1979, JAP 46:599"
DRIVE: Final = "Weil 1970, J Clin Invest 49:1061 (breathing against oxygen pressure)"

EXPONENT, HALF = 2.7, math.log(26.8)
FAST, SLOW = 1 / 10, 1 / 15  # 1/min
ROOM_AIR: Final = 21.0  # %
HYPOXIC_GAIN: Final = 0.4
DAY: Final = 1440.0
INSPIRED: Final = "alveolar"  # set to what `compute_alveolar` gives


def compute_alveolar(inspired_percent: float) -> float:
    """Return ln of the alveolar oxygen pressure in mmHg: 713 · share - 40 / 0.8.

    >>> round(math.exp(compute_alveolar(21.0)))
    100
    """
    return math.log(713.0 * inspired_percent / 100 - 40 / 0.8)


AIR: Final = compute_alveolar(ROOM_AIR)
IMPAIRMENT: Final = 0.2  # usual: 82 mmHg and a saturation of 95 to 96 % in air

RESPIRATION = Block(
    name="respiration",
    states=(
        State(name="breath", rate=SLOW, home=0.0, noise=0.05, prior=0.25, low=0.7, high=4.4),
        State(name="oxygen", rate=FAST, home=0.0, noise=0.135, prior=0.3, low=2.3, high=6.5),
        State(name="impairment", rate=1 / (DAY / 3), home=IMPAIRMENT, noise=0.22, prior=0.22, low=-0.3, high=2.5),
        State(name="own_breath", rate=1 / (3 * DAY), home=math.log(17.0), noise=0.15, prior=0.15, low=1.5, high=4),
        State(name="dead_space", rate=1 / DAY, home=0.0, noise=0.15, prior=0.15, low=-1, high=1.5),
    ),
    inputs=(Input(name=INSPIRED, rate=0.0, home=AIR),),
    terms=(
        Term(to="breath", coefficient=SLOW, a="own_breath"),
        Term(to="breath", coefficient=-SLOW * HYPOXIC_GAIN, a="oxygen"),
        Term(to="breath", coefficient=SLOW * HYPOXIC_GAIN * (AIR - IMPAIRMENT)),
        Term(to="oxygen", coefficient=FAST, a=INSPIRED),
        Term(to="oxygen", coefficient=-FAST, a="impairment"),
    ),
    channels=(
        *(
            Channel(
                signal=signal,
                weights={"oxygen": EXPONENT},
                transform="logit",
                offset=-EXPONENT * HALF,
                noise=noise,
                top=99.0,
            )
            for signal, noise in (("pulse_oximetry", 1.2), ("arterial_saturation", 0.7))
        ),
        Channel(signal="arterial_oxygen", weights={"oxygen": 1.0}, transform="log", relative=0.04),
        Channel(signal="respiratory_rate", weights={"breath": 1.0}, transform="log", noise=1.5),
        Channel(
            signal="arterial_carbon_dioxide",
            weights={"breath": -0.5, "own_breath": 0.5, "dead_space": 1.0},
            transform="log",
            offset=math.log(40.0),
            relative=0.04,
        ),
    ),
    step=20.0,
    sources=(ALVEOLUS, HILL, DRIVE),
)
