"""One patient for one tick of five minutes: what a scenario does to the organs, and what the organs do to each other.

Couplings: fever → heart rate, metabolism; metabolism, output, haemoglobin, shunt → saturation; lactate → breathing;
breathing costs oxygen (4 mL/L above rest, assumed after Field 1982, Am Rev Respir Dis 126:9); low glucose → heart rate.
Waves: two processes of Uhlenbeck, Ornstein 1930 (Phys Rev 36:823) for each patient come and go within hours: veins
pool blood and lungs shunt it while they are positive. Two quicker ones move heart rate and breathing.
Oxygen strain: oxygen extraction beyond STRAIN_ONSET times that of rest, averaged over the last STRAIN_MINUTES or so.
The output times the saturation is in the denominator, so failures at the same time weigh more than one after the other
(oxygen debt and outcome: Shoemaker 1992, Chest 102:208).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedtwin_simulations.plant import circulation, glucose, respiration, temperature
from fedtwin_simulations.plant.circulation import CirculationParameters, CirculationState
from fedtwin_simulations.plant.engine import Array, compilable
from fedtwin_simulations.plant.glucose import GlucoseParameters, GlucoseState
from fedtwin_simulations.plant.respiration import RespirationParameters, RespirationState

TICK_MINUTES = 5.0
GLUCOSE_STEPS = 5  # in one tick
SHOCKS = 4  # independent normal numbers in one tick
WAVE_DECAY = float(np.exp(-TICK_MINUTES / 60.0))
FLICKER_DECAY = float(np.exp(-TICK_MINUTES / 30.0))
HEART_FLICKER, BREATH_FLICKER = 3.0, 0.4  # standard deviations, 1/min and L/min
DAY_HEART = 12.0  # beats/min for each °C of the day's swing
WORK_OF_BREATHING = 4.0  # mL of oxygen for each L
LACTATE_DECAY = np.log(2) / 60.0  # half an hour to an hour in the healthy, longer in the ill; assumed
LACTATE_ONSET, LACTATE_SLOPE = (
    0.5,
    20.0,
)  # extraction at which cells begin to ferment (Ronco 1993, JAMA 270:1724); assumed
CREATININE_RATE = 100.0 / 42_000.0  # clearance ÷ body water, mL/min ÷ mL
LOW_GLUCOSE, GLUCOSE_ALARM = 60.0, 0.6  # mg/dL; beats/min for each mg/dL below
BLEEDING_PRESSURE = 88.0
HIGHEST_WAVE = 2.0
STRAIN_ONSET = 1.3
STRAIN_MINUTES = 90.0


class BodyState(NamedTuple):
    """Everything that is not a circulation, a lung or a pancreas. `healing`: share of the illness that is treated."""

    temperature: Array
    lactate: Array
    creatinine: Array
    healing: Array
    strain: Array
    vessels: Array
    lungs: Array
    heart: Array
    breath: Array


class BodyParameters(NamedTuple):
    """One patient. pooling, shunting: mL and share for each unit of a wave. onset … fade: minutes of the illness."""

    weight: Array
    temperature: Array
    lactate: Array
    creatinine: Array
    extraction: Array
    pooling: Array
    shunting: Array
    admitted: Array  # minutes since midnight
    onset: Array
    rise: Array
    end: Array
    fade: Array


class Effects(NamedTuple):
    """What the illness does at its height.

    bleeding, leak: mL/min. dilation, weakness, shallow, depression, resistance: shares by which vascular tone,
    elastance, depth of breath, drive and insulin's effect fall. pooled: mL. pain: beats/min. shunt: share.
    dead_space: factor - 1. panting: L/min. fever: °C. burning: share of metabolism. ferment: mmol/L/min.
    """

    bleeding: Array
    leak: Array
    dilation: Array
    weakness: Array
    pooled: Array
    pain: Array
    shunt: Array
    dead_space: Array
    shallow: Array
    depression: Array
    panting: Array
    fever: Array
    burning: Array
    resistance: Array
    ferment: Array


class Controls(NamedTuple):
    """What is done in one tick. fluid: mL/min. oxygen: inspired share. pressor: share added to vascular tone.

    carbohydrate: mg, insulin: pmol, both at once at its beginning. basal: factor. treatment: 1/min of healing.
    """

    fluid: Array
    oxygen: Array
    pressor: Array
    carbohydrate: Array
    insulin: Array
    basal: Array
    treatment: Array


@compilable
def envelope(minute: float, onset: Array, rise: Array, end: Array, fade: Array) -> Array:
    """Return how much of the illness there is, 0 to 1: it rises after `onset` and fades after `end`."""
    grown = 1.0 - np.exp(-np.maximum(minute - onset, 0.0) / rise)
    return grown * np.exp(-np.maximum(minute - end, 0.0) / fade)


@compilable
def disturb(b: BodyState, one: Array, two: Array, three: Array, four: Array) -> BodyState:
    """Return the body with its waves and flickers one tick on, exactly; one … four: standard normal numbers."""
    wave, flicker = np.sqrt(1.0 - WAVE_DECAY**2), np.sqrt(1.0 - FLICKER_DECAY**2)
    return BodyState(
        b.temperature,
        b.lactate,
        b.creatinine,
        b.healing,
        b.strain,
        b.vessels * WAVE_DECAY + wave * one,
        b.lungs * WAVE_DECAY + wave * two,
        b.heart * FLICKER_DECAY + flicker * three,
        b.breath * FLICKER_DECAY + flicker * four,
    )


@compilable
def advance_vitals(
    c: CirculationState,
    r: RespirationState,
    b: BodyState,
    sugar: Array,
    cp: CirculationParameters,
    rp: RespirationParameters,
    bp: BodyParameters,
    effects: Effects,
    controls: Controls,
    minute: float,
    minutes: float,
) -> tuple[CirculationState, RespirationState, BodyState]:
    """Return circulation, lungs and body `minutes` after `minute`. sugar: mg/dL of glucose."""
    healing = 1.0 - (1.0 - b.healing) * np.exp(-controls.treatment * minutes)
    ill = envelope(minute, bp.onset, bp.rise, bp.end, bp.fade) * (1.0 - healing)
    day = temperature.swing(bp.admitted + minute)
    warmth = temperature.advance(b.temperature, bp.temperature + day + effects.fever * ill, minutes)

    haemoglobin = 100.0 * c.haemoglobin / c.volume
    metabolism = rp.metabolism * temperature.METABOLIC_FACTOR ** (warmth - bp.temperature)
    consumption = metabolism * (1.0 + effects.burning * ill) + WORK_OF_BREATHING * np.maximum(
        r.ventilation - rp.ventilation, 0.0
    )
    r = respiration.advance(
        r,
        rp,
        minutes,
        consumption,
        c.output,
        haemoglobin,
        controls.oxygen,
        1.0 - effects.depression * ill,
        effects.panting * ill
        + BREATH_FLICKER * b.breath
        + respiration.LACTATE_DRIVE * np.maximum(b.lactate - 2.0, 0.0),
        np.minimum(
            rp.shunt + effects.shunt * ill + bp.shunting * np.minimum(np.maximum(b.lungs, 0.0), HIGHEST_WAVE), 0.6
        ),
        1.0 + effects.dead_space * ill,
        1.0 - effects.shallow * ill,
    )
    extra = circulation.FEVER_RATE * (warmth - bp.temperature - day) + DAY_HEART * day + HEART_FLICKER * b.heart
    extra = extra + effects.pain * ill + GLUCOSE_ALARM * np.maximum(LOW_GLUCOSE - sugar, 0.0)
    c = circulation.advance(
        c,
        cp,
        minutes,
        controls.fluid,
        # A wound bleeds less at a lower pressure.
        effects.bleeding * ill * c.pressure / BLEEDING_PRESSURE,
        effects.leak * ill,
        extra,
        (1.0 - effects.dilation * ill) * (1.0 + controls.pressor),
        1.0 - effects.weakness * ill,
        effects.pooled * ill + bp.pooling * np.minimum(np.maximum(b.vessels, 0.0), HIGHEST_WAVE),
    )
    extraction = consumption / deliver(c.output, haemoglobin, r.saturation)
    fermented = effects.ferment * ill + LACTATE_DECAY * LACTATE_SLOPE * np.maximum(extraction - LACTATE_ONSET, 0.0)
    lactate = bp.lactate + fermented / LACTATE_DECAY
    filtered = np.minimum(np.maximum((c.pressure - 40.0) / 30.0, 0.1), 1.0)
    strained = np.maximum(extraction / bp.extraction - STRAIN_ONSET, 0.0)
    kept = np.exp(-minutes / STRAIN_MINUTES)
    cleared = np.exp(-CREATININE_RATE * filtered * minutes)
    b = BodyState(
        warmth,
        lactate + (b.lactate - lactate) * np.exp(-LACTATE_DECAY * minutes),
        bp.creatinine / filtered + (b.creatinine - bp.creatinine / filtered) * cleared,
        healing,
        strained + (b.strain - strained) * kept,
        b.vessels,
        b.lungs,
        b.heart,
        b.breath,
    )
    return c, r, b


@compilable
def deliver(output: Array, haemoglobin: Array, saturation: Array) -> Array:
    """Return oxygen delivery in mL/min. output: mL/min. haemoglobin: g/dL."""
    return 0.01 * np.maximum(output, 200.0) * respiration.BOUND_OXYGEN * haemoglobin * saturation


@compilable
def advance_glucose(
    s: GlucoseState,
    p: GlucoseParameters,
    resistance: Array,
    controls: Controls,
    minutes: float,
    steps: int,
) -> GlucoseState:
    """Return the pancreas's side of one tick. resistance: share by which insulin's effect is less."""
    s = glucose.eat_and_inject(s, p, controls.carbohydrate, controls.insulin)
    for _ in range(steps):
        s = glucose.advance(s, p, 1.0 - resistance, controls.basal, minutes / steps)
    return s


@compilable
def advance_tick(
    c: CirculationState,
    r: RespirationState,
    b: BodyState,
    g: GlucoseState,
    cp: CirculationParameters,
    rp: RespirationParameters,
    bp: BodyParameters,
    effects: Effects,
    gp: GlucoseParameters,
    controls: Controls,
    shock_one: Array,
    shock_two: Array,
    shock_three: Array,
    shock_four: Array,
    minute: float,
    substeps: int,
) -> tuple[CirculationState, RespirationState, BodyState, GlucoseState]:
    """Return the whole patient after one tick that begins at `minute`."""
    ill = envelope(minute, bp.onset, bp.rise, bp.end, bp.fade) * (1.0 - b.healing)
    g = advance_glucose(g, gp, effects.resistance * ill, controls, TICK_MINUTES, GLUCOSE_STEPS * substeps)
    b = disturb(b, shock_one, shock_two, shock_three, shock_four)
    sugar = g.plasma / gp.glucose_volume
    length = TICK_MINUTES / substeps
    for part in range(substeps):
        c, r, b = advance_vitals(c, r, b, sugar, cp, rp, bp, effects, controls, minute + part * length, length)
    return c, r, b, g
