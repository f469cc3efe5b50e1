"""Glucose and insulin of one patient: meals, secretion, injections, action. After Dalla Man 2007.

Sources: Dalla Man, Rizza, Cobelli 2007, IEEE Trans Biomed Eng 54:1740 (equations; table I, normal and type 2);
Dalla Man, Raimondo, Rizza, Cobelli 2007, J Diabetes Sci Technol 1:323 (subcutaneous insulin; type 1: no secretion,
basal production 2.4 mg/kg/min); Hovorka 2004, Physiol Meas 25:905 (the brain takes less below 4.5 mmol/L).
Units: mg/kg of glucose, pmol/kg of insulin, minutes; the stomach and the gut in mg.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedtwin_simulations.plant.engine import Array, compilable

HEPATIC_EXTRACTION = 0.6  # basal; Dalla Man 2007, table I
LOW_GLUCOSE = 81.0  # mg/dL, 4.5 mmol/L; Hovorka 2004
PMOL_PER_UNIT = 6000.0  # of insulin


class GlucoseState(NamedTuple):
    """What changes. `meal`: mg of the meal that is being emptied, which sets the emptying curve."""

    solid: Array
    liquid: Array
    gut: Array
    meal: Array
    plasma: Array
    tissue: Array
    liver_insulin: Array
    plasma_insulin: Array
    delayed_one: Array
    delayed_two: Array
    action: Array
    portal: Array
    secretion: Array
    depot_one: Array
    depot_two: Array


class GlucoseParameters(NamedTuple):
    """What does not. `secretes`: 1, or 0 in type 1. `basal_infusion`: pmol/kg/min under the skin."""

    weight: Array
    glucose_volume: Array  # dL/kg
    k1: Array
    k2: Array
    insulin_volume: Array  # L/kg
    m1: Array
    m2: Array
    m4: Array
    m5: Array
    m6: Array
    k_max: Array
    k_min: Array
    k_abs: Array
    k_grind: Array
    kp1: Array
    kp2: Array
    kp3: Array
    kp4: Array
    k_i: Array
    brain: Array
    vm0: Array
    vmx: Array
    km0: Array
    p2u: Array
    k_rate: Array
    alpha: Array
    beta: Array
    gamma: Array
    basal_glucose: Array  # mg/dL
    basal_insulin: Array  # pmol/L
    basal_secretion: Array
    secretes: Array
    basal_infusion: Array


ABSORBED, EMPTY_B, EMPTY_D = 0.90, 0.82, 0.010
RENAL_RATE, RENAL_THRESHOLD = 0.0005, 339.0
DEPOT_TRANSFER, DEPOT_SLOW, DEPOT_FAST = 0.0164, 0.0018, 0.0182

# Columns: glucose_volume … gamma. Table I of Dalla Man 2007; vm0, m6 and the basal flows follow from the basal state.
_NORMAL = {
    "glucose_volume": 1.88,
    "k1": 0.065,
    "k2": 0.079,
    "insulin_volume": 0.05,
    "m1": 0.190,
    "m2": 0.484,
    "m4": 0.194,
    "m5": 0.0304,
    "k_max": 0.0558,
    "k_min": 0.0080,
    "k_abs": 0.057,
    "k_grind": 0.0558,
    "kp1": 2.70,
    "kp2": 0.0021,
    "kp3": 0.009,
    "kp4": 0.0618,
    "k_i": 0.0079,
    "brain": 1.0,
    "vmx": 0.047,
    "km0": 225.59,
    "p2u": 0.0331,
    "k_rate": 2.30,
    "alpha": 0.050,
    "beta": 0.11,
    "gamma": 0.5,
}
_TYPE_TWO = {
    "glucose_volume": 1.49,
    "k1": 0.042,
    "k2": 0.071,
    "insulin_volume": 0.04,
    "m1": 0.379,
    "m2": 0.673,
    "m4": 0.269,
    "m5": 0.0526,
    "k_max": 0.0465,
    "k_min": 0.0076,
    "k_abs": 0.023,
    "k_grind": 0.0465,
    "kp1": 3.09,
    "kp2": 0.0007,
    "kp3": 0.005,
    "kp4": 0.0786,
    "k_i": 0.0066,
    "brain": 1.0,
    "vmx": 0.034,
    "km0": 466.21,
    "p2u": 0.0840,
    "k_rate": 0.99,
    "alpha": 0.013,
    "beta": 0.05,
    "gamma": 0.5,
}
CONSTANTS = (_NORMAL, _NORMAL, _TYPE_TWO)  # by diabetes: none, type 1, type 2
TYPE_ONE_PRODUCTION = 2.4  # mg/kg/min


def make_parameters(diabetes: Array, weight: Array, glucose: Array, insulin: Array) -> GlucoseParameters:
    """Return parameters[patients] for whom `glucose` (mg/dL) and `insulin` (pmol/L) are the steady state.

    diabetes: 0 none, 1 type 1, 2 type 2. The basal flows are those of Dalla Man 2007, §II.
    """
    kind = diabetes.astype(int)
    at = {name: np.array([constants[name] for constants in CONSTANTS])[kind] for name in _NORMAL}
    secretes = (kind != 1).astype(float)
    extraction = at["m1"] * HEPATIC_EXTRACTION / (1 - HEPATIC_EXTRACTION)
    plasma = insulin * at["insulin_volume"]
    # With secretion the liver is filled from the portal vein, without it from the circulation only.
    liver = np.where(
        secretes > 0, (at["m2"] + at["m4"]) / at["m1"] * plasma, at["m2"] / (at["m1"] + extraction) * plasma
    )
    secretion = np.where(secretes > 0, (at["m1"] + extraction) * liver - at["m2"] * plasma, 0.0)
    infusion = np.where(secretes > 0, 0.0, (at["m2"] + at["m4"]) * plasma - at["m1"] * liver)
    mass = glucose * at["glucose_volume"]
    inhibition = at["kp2"] * mass + at["kp3"] * insulin + at["kp4"] * secretion / at["gamma"]
    production = np.where(secretes > 0, at["kp1"] - inhibition, TYPE_ONE_PRODUCTION)
    tissue = (at["k1"] * mass - production + at["brain"]) / at["k2"]
    return GlucoseParameters(
        weight=weight,
        m6=at["m5"] * secretion + HEPATIC_EXTRACTION,
        kp1=production + inhibition,
        vm0=(production - at["brain"]) * (at["km0"] + tissue) / tissue,
        basal_glucose=glucose,
        basal_insulin=insulin,
        basal_secretion=secretion,
        secretes=secretes,
        basal_infusion=infusion,
        **{name: value for name, value in at.items() if name != "kp1"},
    )


def rest(p: GlucoseParameters) -> GlucoseState:
    """Return the fasting steady state."""
    zero = np.zeros_like(p.weight)
    plasma = p.basal_glucose * p.glucose_volume
    insulin = p.basal_insulin * p.insulin_volume
    production = p.kp1 - p.kp2 * plasma - p.kp3 * p.basal_insulin - p.kp4 * p.basal_secretion / p.gamma
    extraction = p.m1 * HEPATIC_EXTRACTION / (1 - HEPATIC_EXTRACTION)
    liver = (p.m2 * insulin + p.basal_secretion) / (p.m1 + extraction)
    depot = p.basal_infusion / (DEPOT_TRANSFER + DEPOT_SLOW)
    return GlucoseState(
        solid=zero,
        liquid=zero,
        gut=zero,
        meal=np.ones_like(zero),
        plasma=plasma,
        tissue=(p.k1 * plasma - production + p.brain) / p.k2,
        liver_insulin=liver,
        plasma_insulin=insulin,
        delayed_one=p.basal_insulin,
        delayed_two=p.basal_insulin,
        action=zero,
        portal=p.basal_secretion / p.gamma,
        secretion=zero,
        depot_one=depot,
        depot_two=depot * DEPOT_TRANSFER / DEPOT_FAST,
    )


@compilable
def eat_and_inject(s: GlucoseState, p: GlucoseParameters, carbohydrate: Array, insulin: Array) -> GlucoseState:
    """Return the state after `carbohydrate` (mg) is swallowed and `insulin` (pmol) injected under the skin."""
    eaten = (carbohydrate > 0.0) * 1.0
    return GlucoseState(
        s.solid + carbohydrate,
        s.liquid,
        s.gut,
        # A new meal meets what is left in the stomach; the emptying curve is that of both together.
        eaten * (s.solid + s.liquid + carbohydrate) + (1.0 - eaten) * s.meal,
        s.plasma,
        s.tissue,
        s.liver_insulin,
        s.plasma_insulin,
        s.delayed_one,
        s.delayed_two,
        s.action,
        s.portal,
        s.secretion,
        s.depot_one + insulin / p.weight,
        s.depot_two,
    )


@compilable
def flow(s: GlucoseState, p: GlucoseParameters, sensitivity: Array, basal: Array) -> GlucoseState:
    """Return the time derivative of the state, per minute.

    sensitivity: of liver and tissue to insulin, 1 at rest, less under stress. basal: factor on the basal infusion.
    """
    stomach = s.solid + s.liquid
    a = 2.5 / (s.meal * (1.0 - EMPTY_B))
    b = 2.5 / (s.meal * EMPTY_D)
    curve = np.tanh(a * (stomach - EMPTY_B * s.meal)) - np.tanh(b * (stomach - EMPTY_D * s.meal)) + 2.0
    emptying = (p.k_min + 0.5 * (p.k_max - p.k_min) * curve) * s.liquid
    appearance = ABSORBED * p.k_abs * s.gut / p.weight
    insulin = s.plasma_insulin / p.insulin_volume
    glucose = s.plasma / p.glucose_volume
    production = np.maximum(
        p.kp1 - p.kp2 * s.plasma - sensitivity * p.kp3 * s.delayed_two - p.kp4 * s.portal * sensitivity, 0.0
    )
    brain = p.brain * np.minimum(1.0, glucose / LOW_GLUCOSE)
    capacity = np.maximum(p.vm0 + p.vmx * sensitivity * s.action, 0.0)
    uptake = capacity * s.tissue / (p.km0 + s.tissue)
    renal = RENAL_RATE * np.maximum(s.plasma - RENAL_THRESHOLD, 0.0)
    plasma = production + appearance - brain - renal - p.k1 * s.plasma + p.k2 * s.tissue
    secreted = p.gamma * s.portal
    extraction = np.minimum(np.maximum(p.m6 - p.m5 * secreted, 0.0), 0.95)
    m3 = extraction * p.m1 / (1.0 - extraction)
    wanted = np.maximum(p.beta * (glucose - p.basal_glucose), -p.basal_secretion)
    into_portal = s.secretion + p.basal_secretion + p.k_rate * np.maximum(plasma / p.glucose_volume, 0.0)
    from_depots = DEPOT_SLOW * s.depot_one + DEPOT_FAST * s.depot_two
    return GlucoseState(
        -p.k_grind * s.solid,
        p.k_grind * s.solid - emptying,
        emptying - p.k_abs * s.gut,
        0.0 * s.meal,
        plasma,
        p.k1 * s.plasma - p.k2 * s.tissue - uptake,
        p.m2 * s.plasma_insulin + secreted - (p.m1 + m3) * s.liver_insulin,
        p.m1 * s.liver_insulin + from_depots - (p.m2 + p.m4) * s.plasma_insulin,
        p.k_i * (insulin - s.delayed_one),
        p.k_i * (s.delayed_one - s.delayed_two),
        p.p2u * (insulin - p.basal_insulin - s.action),
        p.secretes * np.maximum(into_portal, 0.0) - p.gamma * s.portal,
        p.secretes * p.alpha * (wanted - s.secretion),
        p.basal_infusion * basal - (DEPOT_TRANSFER + DEPOT_SLOW) * s.depot_one,
        DEPOT_TRANSFER * s.depot_one - DEPOT_FAST * s.depot_two,
    )


@compilable
def move(s: GlucoseState, d: GlucoseState, minutes: float) -> GlucoseState:
    """Return `s` + `minutes` · `d`."""
    return GlucoseState(
        s.solid + minutes * d.solid,
        s.liquid + minutes * d.liquid,
        s.gut + minutes * d.gut,
        s.meal,
        s.plasma + minutes * d.plasma,
        s.tissue + minutes * d.tissue,
        s.liver_insulin + minutes * d.liver_insulin,
        s.plasma_insulin + minutes * d.plasma_insulin,
        s.delayed_one + minutes * d.delayed_one,
        s.delayed_two + minutes * d.delayed_two,
        s.action + minutes * d.action,
        s.portal + minutes * d.portal,
        s.secretion + minutes * d.secretion,
        s.depot_one + minutes * d.depot_one,
        s.depot_two + minutes * d.depot_two,
    )


@compilable
def advance(s: GlucoseState, p: GlucoseParameters, sensitivity: Array, basal: Array, minutes: float) -> GlucoseState:
    """Return the state after one step by the midpoint rule, of second order in `minutes`; stable up to 1.3 min."""
    half = move(s, flow(s, p, sensitivity, basal), 0.5 * minutes)
    return move(s, flow(half, p, sensitivity, basal), minutes)
