"""Glucose and insulin: the minimal model, fed by meals and injections, with an unexplained flux that is estimated.

    interstitial' = (plasma - interstitial) / 6                           sensor's lag
    plasma'  = -SG (plasma - basal) - action · plasma + flux + share · absorption
    action'  = -p2 action + p2 · SI · sensitivity · insulin
    flux'    = -flux / 30 + trend,   trend' = -trend / 90 + noise         whatever nobody announced
    sensitivity, share, basal: personal; they wander and forget over days to weeks
Two compartments carry carbohydrate from mouth to blood, three carry insulin from skin to plasma. Insulin is the excess
over the basal rate: what the basal rate does is in `basal`.
SG, the times and sizes of flux, trend and basal, and the sensor's jitter were fitted, by likelihood of forecasts, to
those half of the ShanghaiT1DM and T2DM patients (Zhao 2023, Sci Data 10:35) whom no reported figure is of. What a
dose does (SI, p2, absorption) was not: there meals and insulin come together, and the fit would say that insulin does
nothing. It stays as published, for 0.03 mg/dL of forecast error.
"""

from __future__ import annotations

from typing import Final

from fedtwin_client.twins.block import Block, Channel, Input, State, Term

MINIMAL: Final = "Bergman 1979, Am J Physiol 236:E667 (model); Bergman 1981, J Clin Invest 68:1456 (p2, SI, rounded)"
GUT: Final = "Hovorka 2004, Physiol Meas 25:905 (gut 40 min, 80 % absorbed; insulin 55 min, 0.138 /min, 0.12 L/kg)"
LAG: Final = "Rebrin 1999, Am J Physiol 277:E561; Basu 2013, Diabetes 62:4083 (lag of the interstitium, 5 to 12 min)"

WEIGHT: Final = 70.0  # kg; another weight is another share and sensitivity
EFFECTIVENESS: Final = 0.028  # SG, 1/min
ACTION_RATE: Final = 0.025  # p2, 1/min
SENSITIVITY: Final = 5.0e-4  # SI, 1/min for each mU/L
GLUCOSE_VOLUME: Final = 1.6 * WEIGHT  # dL
ABSORPTION, GUT_MINUTES = 0.8, 40.0
INSULIN_MINUTES, CLEARANCE, INSULIN_VOLUME = 55.0, 0.138, 0.12 * WEIGHT  # min, 1/min, L
LAG_MINUTES: Final = 6.0
DAY: Final = 1440.0

CARBOHYDRATE: Final = "stomach"  # g are added to it
INSULIN: Final = "depot"  # units are added to it

GLUCOSE = Block(
    name="glucose",
    states=(
        State(name="interstitial", rate=1 / LAG_MINUTES, home=0.0, noise=0.0, prior=10.0, low=10, high=1000),
        State(name="plasma", rate=EFFECTIVENESS, home=0.0, noise=5.0, prior=40.0, low=10, high=1000),
        State(name="action", rate=ACTION_RATE, home=0.0, noise=0.001, prior=0.002, low=-0.02, high=0.1),
        State(name="flux", rate=1 / 30, home=0.0, noise=0.6, prior=0.6, low=-20, high=20),
        State(name="trend", rate=1 / 90, home=0.0, noise=0.045, prior=0.045, low=-1, high=1),
        State(name="sensitivity", rate=1 / (7 * DAY), home=1.0, noise=0.4, prior=0.4, low=0.05, high=5),
        State(name="share", rate=1 / (7 * DAY), home=0.4, noise=0.25, prior=0.25, low=0.02, high=2),
        State(name="basal", rate=1 / (20 * DAY), home=140.0, noise=25.0, prior=25.0, low=40, high=500),
    ),
    inputs=(
        Input(name="insulin", rate=CLEARANCE),  # mU/L
        Input(name="absorption", rate=1 / GUT_MINUTES),  # g
        Input(name="tissue", rate=1 / INSULIN_MINUTES),  # U
        Input(name=CARBOHYDRATE, rate=1 / GUT_MINUTES),  # g
        Input(name=INSULIN, rate=1 / INSULIN_MINUTES),  # U
    ),
    terms=(
        Term(to="interstitial", coefficient=1 / LAG_MINUTES, a="plasma"),
        Term(to="plasma", coefficient=EFFECTIVENESS, a="basal"),
        Term(to="plasma", coefficient=-1.0, a="action", b="plasma"),
        Term(to="plasma", coefficient=1.0, a="flux"),
        Term(
            to="plasma",
            coefficient=1000 * ABSORPTION / (GUT_MINUTES * GLUCOSE_VOLUME),
            a="share",
            b="absorption",
        ),
        Term(to="action", coefficient=ACTION_RATE * SENSITIVITY, a="sensitivity", b="insulin"),
        Term(to="flux", coefficient=1.0, a="trend"),
        Term(to="insulin", coefficient=1000 / (INSULIN_MINUTES * INSULIN_VOLUME), a="tissue"),
        Term(to="absorption", coefficient=1 / GUT_MINUTES, a=CARBOHYDRATE),
        Term(to="tissue", coefficient=1 / INSULIN_MINUTES, a=INSULIN),
    ),
    channels=(
        # Most of a sensor's 9 to 11 % is slow error (Facchinetti 2014, IEEE TBME 61:2161) and lands in the states.
        Channel(signal="interstitial_glucose", weights={"interstitial": 1.0}, noise=0.5, relative=0.002),
        # Laboratory and point of care: CLIA 2024 allows 8 %, two standard deviations.
        Channel(signal="glucose", weights={"plasma": 1.0}, noise=2.0, relative=0.04),
    ),
    step=5.0,
    sources=(MINIMAL, GUT, LAG),
)
