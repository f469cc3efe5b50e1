"""Breathing: the dissociation curve of Severinghaus, blood gases at rest and in disease."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_simulations.plant import respiration
from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.respiration import RespirationState

COUNT = 5
ZERO, ONE = np.zeros(COUNT), np.ones(COUNT)
LUNG, REST = respiration.make_parameters(
    ONE * 75, ONE * 15, ONE * 40, ONE * 0.04, ONE * 235, output=ONE * 5500, haemoglobin=ONE * 14
)


def follow(
    minutes: float,
    *,
    step: float = 5.0,
    consumption: float = 235,
    inspired: float = respiration.ROOM_AIR,
    drive: float = 1.0,
    shunt: Array = LUNG.shunt,
    dead_space: float = 1.0,
    stiffness: float = 1.0,
) -> RespirationState:
    s = REST
    for _ in range(round(minutes / step)):
        s = respiration.advance(
            s,
            LUNG,
            step,
            ONE * consumption,
            ONE * 5500,
            ONE * 14,
            ONE * inspired,
            ONE * drive,
            ZERO,
            shunt,
            ONE * dead_space,
            ONE * stiffness,
        )
    return s


# The standard human curve (Severinghaus 1966, J Appl Physiol 21:1108), in mmHg and %; half at 26.86 mmHg.
@pytest.mark.parametrize(
    ("pressure", "saturation"),
    [(10, 9.58), (20, 32.12), (27, 50.3), (30, 57.54), (40, 74.69), (60, 90.51), (80, 95.84), (100, 97.72)],
)
def test_the_dissociation_curve_is_the_published_one(pressure: float, saturation: float) -> None:
    assert 100 * respiration.saturate(np.array(float(pressure))) == pytest.approx(saturation, abs=0.9)


@given(st.floats(5, 200))
def test_the_inverse_of_the_curve_is_its_inverse(pressure: float) -> None:
    there = respiration.saturate(np.array(pressure))
    assert respiration.desaturate(there) == pytest.approx(pressure, rel=1e-6)


def test_rest_is_steady() -> None:
    s = follow(600)
    assert s.carbon_dioxide == pytest.approx(40, abs=1e-6)
    assert s.breath_rate == pytest.approx(15, abs=1e-6)
    assert np.all((s.saturation > 0.96) & (s.saturation < 0.985))


def test_a_shunt_lowers_saturation_and_oxygen_hardly_helps_a_large_one() -> None:
    shunt = np.array([0.04, 0.1, 0.2, 0.3, 0.5])
    air, oxygen = follow(240, shunt=shunt), follow(240, shunt=shunt, inspired=0.6)
    assert np.all(np.diff(air.saturation) < 0)
    assert air.saturation[3] < 0.9
    gain = oxygen.saturation - air.saturation
    assert oxygen.saturation[2] > 0.94
    # The isoshunt lines of Benatar 1973, Br J Anaesth 45:711: above a third, oxygen does not normalise the saturation.
    assert oxygen.saturation[4] < 0.9
    assert np.all(gain >= 0)


def test_a_depressed_centre_retains_carbon_dioxide() -> None:
    s = follow(600, drive=0.4)
    assert np.all(s.carbon_dioxide > 43)
    assert np.all(s.ventilation < REST.ventilation)
    assert np.all(s.saturation < REST.saturation)


def test_apnoea_adds_carbon_dioxide_at_the_published_pace() -> None:
    # Eger, Severinghaus 1961: 3 to 4 mmHg a minute after the first one.
    s = follow(5, step=0.5, drive=0.0)
    assert 2.0 < (s.carbon_dioxide[0] - 40) / 5 < 4.5


def test_a_fever_of_two_degrees_makes_breathing_quicker() -> None:
    # Jensen 2019, Acute Med 18:141: 1.4 breaths/min for each °C; 13 % of metabolism for each.
    s = follow(240, consumption=235 * 1.13**2)
    assert 1.5 < s.breath_rate[0] - 15 < 4.5
    assert s.carbon_dioxide[0] == pytest.approx(40, abs=2)


def test_stiff_lungs_breathe_fast_and_shallow() -> None:
    s = follow(240, stiffness=0.6, dead_space=1.5)
    assert np.all(s.breath_rate > 24)
    assert np.all(s.ventilation / s.breath_rate < REST.ventilation / REST.breath_rate)


def test_five_minutes_at_a_time_end_where_seconds_do() -> None:
    shunt = np.array([0.04, 0.1, 0.2, 0.3, 0.4])
    coarse, fine = follow(60, shunt=shunt, stiffness=0.8), follow(60, step=0.25, shunt=shunt, stiffness=0.8)
    assert coarse.carbon_dioxide == pytest.approx(fine.carbon_dioxide, abs=0.5)
    assert coarse.saturation == pytest.approx(fine.saturation, abs=0.005)
    assert coarse.breath_rate == pytest.approx(fine.breath_rate, abs=0.5)
