"""Ventilation, carbon dioxide and oxygen of one patient.

  - dissociation curve   S = 1 / (23400 / (P³ + 150·P) + 1)              Severinghaus 1979, J Appl Physiol 46:599
  - alveolar gas         P_A = F·(760 - 47) - P_CO2 / 0.8                Fenn, Rahn, Otis 1946, Am J Physiol 146:637
  - shunt                C_a = C_c - s/(1 - s)·V'O2 / CO                 Berggren 1942, Acta Physiol Scand 4:suppl 11
  - content              C = 1.34·Hb·S + 0.003·P                         Severinghaus 1979; arterial P as 90·S
  - carbon dioxide       57·dP/dt = V'CO2 - P·V'_A / 0.863               57 mL/mmHg: Eger, Severinghaus 1961,
                         Anesthesiology 22:419 (3.5 mmHg/min in apnoea at 200 mL/min)
  - drive                2 L/min/mmHg of CO2                             Read 1967, Australas Ann Med 16:20
                         1 L/min for each % below saturation at rest     Rebuck 1974, Am Rev Respir Dis 109:345
  - breathing pattern    V'_E = m·(V_T - 0.25 L)                         Hey 1966, Respir Physiol 1:193
Units: mmHg, L/min of ventilation, mL/min of gas, minutes, saturation as a share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedtwin_simulations.plant.engine import Array, compilable

ROOM_AIR = 0.21
DRY_PRESSURE = 713.0
QUOTIENT = 0.8
CARBON_DIOXIDE_STORE = 57.0  # mL/mmHg
CARBON_DIOXIDE_DRIVE = 2.0
HYPOXIC_DRIVE = 100.0  # L/min for saturation 0 to 1
LACTATE_DRIVE = 1.0  # L/min/(mmol/L), assumed
LEAST_TIDAL = 0.25  # L
DEAD_SPACE = 0.002  # L/kg of weight, 150 mL at 75 kg
HIGHEST_VENTILATION = 0.8  # L/min/kg, assumed
BOUND_OXYGEN, DISSOLVED_OXYGEN = 1.34, 0.27  # mL/g; mL/dL at full saturation


class RespirationState(NamedTuple):
    """`saturation`: arterial. `ventilation`: L/min."""

    carbon_dioxide: Array
    saturation: Array
    ventilation: Array
    breath_rate: Array


class RespirationParameters(NamedTuple):
    """One patient at rest. `pattern`: Hey's m, 1/min. `bias`: L/min at rest, less what CO2 adds."""

    weight: Array
    carbon_dioxide: Array
    ventilation: Array
    pattern: Array
    saturation: Array
    shunt: Array
    metabolism: Array  # mL/min of oxygen at rest


@compilable
def saturate(pressure: Array) -> Array:
    """Return the saturation of haemoglobin, a share, at an oxygen pressure in mmHg.

    >>> round(float(saturate(26.86)), 3)
    0.5
    """
    return 1.0 / (23400.0 / (pressure * (pressure * pressure + 150.0)) + 1.0)


def desaturate(saturation: Array) -> Array:
    """Return the oxygen pressure in mmHg at a saturation, by Cardano's formula: the inverse of `saturate`."""
    half = 0.5 * 23400.0 * saturation / (1.0 - saturation)
    root = np.sqrt(half * half + 50.0**3)
    return np.cbrt(half + root) + np.cbrt(half - root)


@compilable
def saturate_arteries(
    carbon_dioxide: Array, inspired: Array, shunt: Array, haemoglobin: Array, consumption: Array, output: Array
) -> Array:
    """Return the arterial saturation. haemoglobin: g/dL. consumption: mL/min. output: mL/min."""
    alveolar = np.maximum(inspired * DRY_PRESSURE - carbon_dioxide / QUOTIENT, 10.0)
    end = BOUND_OXYGEN * haemoglobin * saturate(alveolar) + 0.003 * alveolar
    mixed = end - shunt / (1.0 - shunt) * 100.0 * consumption / output
    return np.minimum(np.maximum(mixed / (BOUND_OXYGEN * haemoglobin + DISSOLVED_OXYGEN), 0.3), 0.995)


def make_parameters(
    weight: Array,
    breath_rate: Array,
    carbon_dioxide: Array,
    shunt: Array,
    metabolism: Array,
    *,
    output: Array,
    haemoglobin: Array,
) -> tuple[RespirationParameters, RespirationState]:
    """Return parameters and the steady state with exactly this breath rate and carbon dioxide on room air."""
    alveolar = 0.863 * QUOTIENT * metabolism / carbon_dioxide
    ventilation = alveolar + breath_rate * DEAD_SPACE * weight
    saturation = saturate_arteries(
        carbon_dioxide, np.full_like(shunt, ROOM_AIR), shunt, haemoglobin, metabolism, output
    )
    parameters = RespirationParameters(
        weight=weight,
        carbon_dioxide=carbon_dioxide,
        ventilation=ventilation,
        pattern=ventilation / np.maximum(ventilation / breath_rate - LEAST_TIDAL, 0.05),
        saturation=saturation,
        shunt=shunt,
        metabolism=metabolism,
    )
    # Hey's line at rest gives the breath rate back unless the breath was shallower than the line allows.
    return parameters, RespirationState(
        carbon_dioxide=carbon_dioxide,
        saturation=saturation,
        ventilation=ventilation,
        breath_rate=ventilation / (ventilation / parameters.pattern + LEAST_TIDAL),
    )


@compilable
def breathe(
    carbon_dioxide: Array,
    saturation: Array,
    p: RespirationParameters,
    drive: Array,
    extra: Array,
    dead_space: Array,
    stiffness: Array,
) -> tuple[Array, Array, Array]:
    """Return ventilation, breath rate and alveolar ventilation.

    drive: factor of a depressed centre. extra: L/min. dead_space: factor. stiffness: factor on the depth of a breath.
    """
    wanted = p.ventilation + CARBON_DIOXIDE_DRIVE * (carbon_dioxide - p.carbon_dioxide) + extra
    wanted = drive * (wanted + HYPOXIC_DRIVE * np.maximum(p.saturation - saturation, 0.0))
    # Never quite apnoea, and no more than the muscles can do.
    ventilation = np.minimum(np.maximum(wanted, 0.02 * p.weight), HIGHEST_VENTILATION * p.weight)
    tidal = (ventilation / p.pattern + LEAST_TIDAL) * stiffness
    rate = ventilation / tidal
    return ventilation, rate, np.maximum(ventilation - rate * DEAD_SPACE * p.weight * dead_space, 0.1 * ventilation)


@compilable
def advance(
    s: RespirationState,
    p: RespirationParameters,
    minutes: float,
    consumption: Array,
    output: Array,
    haemoglobin: Array,
    inspired: Array,
    drive: Array,
    extra: Array,
    shunt: Array,
    dead_space: Array,
    stiffness: Array,
) -> RespirationState:
    """Return the state after one step: carbon dioxide by the linearly implicit Euler rule, oxygen at once."""
    produced = QUOTIENT * consumption
    saturation = saturate_arteries(s.carbon_dioxide, inspired, shunt, haemoglobin, consumption, output)
    _, _, alveolar = breathe(s.carbon_dioxide, saturation, p, drive, extra, dead_space, stiffness)
    above = s.carbon_dioxide + 1e-4
    saturation = saturate_arteries(above, inspired, shunt, haemoglobin, consumption, output)
    _, _, beyond = breathe(above, saturation, p, drive, extra, dead_space, stiffness)
    scale = minutes / (0.863 * CARBON_DIOXIDE_STORE)
    slope = alveolar + s.carbon_dioxide * (beyond - alveolar) / 1e-4
    change = 0.863 * produced - s.carbon_dioxide * alveolar
    carbon_dioxide = s.carbon_dioxide + scale * change / (1.0 + scale * np.maximum(slope, 0.0))
    carbon_dioxide = np.minimum(np.maximum(carbon_dioxide, 10.0), 150.0)
    saturation = saturate_arteries(carbon_dioxide, inspired, shunt, haemoglobin, consumption, output)
    ventilation, rate, _ = breathe(carbon_dioxide, saturation, p, drive, extra, dead_space, stiffness)
    return RespirationState(carbon_dioxide, saturation, ventilation, rate)
