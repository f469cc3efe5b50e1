"""Body temperature follows a set point: the patient's own, and a fever that comes and goes within a day.

temperature' = -(temperature - own - fever) / 60
"""

from __future__ import annotations

from typing import Final

from fedtwin_client.twins.block import Block, Channel, State, Term

SET_POINT: Final = "Boulant 2006, J Appl Physiol 100:1347 (set point); Newton's law for the lag of an hour"
USUAL: Final = "Obermeyer 2017, BMJ 359:j5468 (36.6 °C, own baselines 0.2 °C apart)"

LAG: Final = 1 / 60
DAY: Final = 1440.0

TEMPERATURE = Block(
    name="temperature",
    states=(
        State(name="temperature", rate=LAG, home=0.0, noise=0.05, prior=0.5, low=25, high=44),
        State(name="fever", rate=1 / (DAY / 2), home=0.0, noise=0.5, prior=0.5, low=-6, high=6),
        State(name="own", rate=1 / (7 * DAY), home=36.8, noise=0.25, prior=0.25, low=34, high=39),
    ),
    inputs=(),
    terms=(
        Term(to="temperature", coefficient=LAG, a="own"),
        Term(to="temperature", coefficient=LAG, a="fever"),
    ),
    channels=(Channel(signal="temperature", weights={"temperature": 1.0}, noise=0.15),),
    step=60.0,
    sources=(SET_POINT, USUAL),
)
