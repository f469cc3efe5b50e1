"""Heart rate, arterial pressure, cardiac output and blood volume of one patient, averaged over beats.

One ventricle between arteries and veins (the right heart and the lungs are lumped with the veins, the
little blood that arteries hold with the unstressed volume):
  - venous pressure     P_v = h(V - V_u(s)) / C_v, h(x) = (x + √(x² + SOFTNESS²)) / 2: veins never quite empty
  - end-diastolic       V_d = V_0 + ln(1 + P_v / A) / B            Burkhoff, Tyberg 1993, Am J Physiol 265:H1819
  - stroke volume       E_es·(V_d - V_0) / (E_es + E_a), E_a = R·HR     Sunagawa 1983, Am J Physiol 245:H773
  - arterial pressure   P_a = P_v + E_a·SV, cardiac output HR·SV
  - baroreflex          u' = (k·(P_set - P_a) - u) / τ; the tone s = 1 / (1 + exp(-u)) moves HR, R, E_es and V_u
                        form, k and τ: Zenker, Rubin, Clermont 2007, PLoS Comput Biol 3:e204 (there the lag is behind
                        the sigmoid; its fourfold ranges of R and E_es are narrower here, assumed, so that
                        blood loss meets the classes of ATLS)
  - highest heart rate  208 - 0.7·age                              Tanaka 2001, J Am Coll Cardiol 37:153
  - venous reserve      10 mL/kg                                   Greenway, Lautt 1986, Can J Physiol 64:383
  - fluid exchange      V' = in - out - q, E' = q, q = k_e·(V - V_rest - E / α)
                        form: Bighamian 2016, Front Physiol 7:390
  - fever               +7.2 beats/min for each °C                 Jensen 2019, Acute Med 18:141
Units: mL, mmHg, minutes; haemoglobin in g.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedtwin_simulations.plant.engine import Array, compilable

LOWEST_RATE = 40.0  # 1/min; Zenker 2007, 2/3 Hz
REFLEX_SLOPE = 0.1838  # 1/mmHg
REFLEX_MINUTES = 20.0 / 60.0
RESISTANCE_RANGE, ELASTANCE_RANGE = 2.0, 1.0  # at full tone they are 1 + this times what they are at none
FILLING_A, FILLING_B, FILLING_VOLUME = 0.34, 0.029, 5.0
VENOUS_COMPLIANCE = 1.6  # mL/mmHg/kg; Zenker 2007: 111 mL/mmHg
SOFTNESS = 250.0  # mL, assumed
VENOUS_PRESSURE = 7.0  # mmHg at rest, assumed
VENOUS_RESERVE = 10.0  # mL/kg
EXCHANGE_RATE = 1.0 / 90.0  # 1/min, assumed
EXCHANGE_RATIO = 2.0  # of crystalloid, twice as much ends in the tissue as in the vessels
FEVER_RATE = 7.2  # beats/min/°C
STEP_OF_SLOPE = 1e-5  # of the reflex, for its own derivative
ITERATIONS, LONGEST_STEP = 3, 1.5


class CirculationState(NamedTuple):
    """`tissue`: mL that the vessels have lent. `haemoglobin`: g in the vessels. `reflex`: u of the tone."""

    volume: Array
    tissue: Array
    haemoglobin: Array
    reflex: Array
    heart_rate: Array
    pressure: Array
    output: Array  # mL/min


class CirculationParameters(NamedTuple):
    """One patient at rest; `resistance` in mmHg·min/mL, `elastance` in mmHg/mL, both at the tone of rest."""

    weight: Array
    highest_rate: Array
    tone: Array
    set_point: Array
    resistance: Array
    elastance: Array
    unstressed: Array
    volume: Array


def make_parameters(
    age: Array, weight: Array, heart_rate: Array, pressure: Array, output: Array, *, haemoglobin: Array
) -> tuple[CirculationParameters, CirculationState]:
    """Return parameters and the steady state with exactly this heart rate, pressure (mmHg) and output (mL/min).

    haemoglobin: g/dL. The blood volume is 70 mL/kg.
    """
    highest = 208 - 0.7 * age
    tone = (heart_rate - LOWEST_RATE) / (highest - LOWEST_RATE)
    reflex = np.log(tone / (1 - tone))
    stroke = output / heart_rate
    resistance = (pressure - VENOUS_PRESSURE) / output
    arterial = resistance * heart_rate
    filled = np.log1p(VENOUS_PRESSURE / FILLING_A) / FILLING_B
    volume = 70.0 * weight
    stressed = VENOUS_COMPLIANCE * weight * VENOUS_PRESSURE
    parameters = CirculationParameters(
        weight=weight,
        highest_rate=highest,
        tone=tone,
        set_point=pressure + reflex / REFLEX_SLOPE,
        resistance=resistance,
        # A stroke above nine tenths of the filling would need an infinite elastance.
        elastance=arterial * stroke / np.maximum(filled - stroke, 0.1 * filled),
        unstressed=volume - stressed + SOFTNESS**2 / (4 * stressed),
        volume=volume,
    )
    zero = np.zeros_like(weight)
    state = CirculationState(
        volume=volume,
        tissue=zero,
        haemoglobin=haemoglobin * volume / 100,
        reflex=reflex,
        heart_rate=heart_rate,
        pressure=pressure,
        output=output,
    )
    return parameters, state


@compilable
def beat(
    reflex: Array,
    volume: Array,
    p: CirculationParameters,
    extra_rate: Array,
    tone: Array,
    contractility: Array,
    pooled: Array,
) -> tuple[Array, Array, Array]:
    """Return heart rate, arterial pressure and output at this tone of the reflex.

    extra_rate: beats/min beyond the reflex.
    tone, contractility: factors on R and E_es. pooled: mL of veins that opened.
    """
    activity = 1.0 / (1.0 + np.exp(-reflex))
    rate = LOWEST_RATE + activity * (p.highest_rate - LOWEST_RATE) + extra_rate
    rate = np.minimum(np.maximum(rate, LOWEST_RATE), p.highest_rate)
    arterial = p.resistance * tone * rate * (1.0 + RESISTANCE_RANGE * activity) / (1.0 + RESISTANCE_RANGE * p.tone)
    elastance = p.elastance * contractility * (1.0 + ELASTANCE_RANGE * activity) / (1.0 + ELASTANCE_RANGE * p.tone)
    recruited = VENOUS_RESERVE * p.weight * (activity - p.tone) / (1.0 - p.tone)
    stressed = volume - (p.unstressed + pooled - recruited)
    venous = 0.5 * (stressed + np.sqrt(stressed * stressed + SOFTNESS * SOFTNESS)) / (VENOUS_COMPLIANCE * p.weight)
    filled = np.log(1.0 + venous / FILLING_A) / FILLING_B
    stroke = elastance * filled / (elastance + arterial)
    return rate, venous + arterial * stroke, rate * stroke


@compilable
def advance(
    s: CirculationState,
    p: CirculationParameters,
    minutes: float,
    infused: Array,
    bled: Array,
    leaked: Array,
    extra_rate: Array,
    tone: Array,
    contractility: Array,
    pooled: Array,
) -> CirculationState:
    """Return the state after one step. infused, bled, leaked: mL/min into, out of, and through the vessels.

    - volume + tissue changes by exactly (infused - bled) · minutes, and haemoglobin only by bleeding
    - stable at any step: the reflex is advanced by the implicit Euler rule
    """
    exchanged = EXCHANGE_RATE * (s.volume - p.volume - s.tissue / EXCHANGE_RATIO)
    exchanged = exchanged * minutes / (1.0 + minutes * EXCHANGE_RATE * (1.0 + 1.0 / EXCHANGE_RATIO)) + leaked * minutes
    lost = np.minimum(bled * minutes, 0.9 * s.volume)
    volume = s.volume + infused * minutes - lost - exchanged
    share = minutes / REFLEX_MINUTES
    reflex = s.reflex
    for _ in range(ITERATIONS):  # of Newton's method on the implicit Euler rule
        _, pressure, _ = beat(reflex, volume, p, extra_rate, tone, contractility, pooled)
        _, beyond, _ = beat(reflex + STEP_OF_SLOPE, volume, p, extra_rate, tone, contractility, pooled)
        missing = s.reflex - reflex + share * (REFLEX_SLOPE * (p.set_point - pressure) - reflex)
        slope = 1.0 + share * (1.0 + REFLEX_SLOPE * np.maximum(beyond - pressure, 0.0) / STEP_OF_SLOPE)
        reflex = reflex + np.minimum(np.maximum(missing / slope, -LONGEST_STEP), LONGEST_STEP)
    rate, pressure, output = beat(reflex, volume, p, extra_rate, tone, contractility, pooled)
    return CirculationState(
        volume, s.tissue + exchanged, s.haemoglobin * (1.0 - lost / s.volume), reflex, rate, pressure, output
    )
