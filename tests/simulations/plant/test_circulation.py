"""Circulation: rest is steady, blood loss follows the ATLS classes, fluid and vessels act with the right sign."""

from __future__ import annotations

import numpy as np
import pytest

from fedtwin_simulations.plant import circulation
from fedtwin_simulations.plant.circulation import CirculationState
from fedtwin_simulations.plant.engine import Array

SHARES = np.array([0.0, 0.10, 0.15, 0.25, 0.35, 0.45])  # of the blood volume, lost
COUNT = len(SHARES)
ZERO, ONE = np.zeros(COUNT), np.ones(COUNT)
YOUNG, REST = circulation.make_parameters(ONE * 40, ONE * 75, ONE * 75, ONE * 90, ONE * 5500, haemoglobin=ONE * 14)


def follow(
    minutes: float,
    *,
    step: float = 1.0,
    bled: Array = ZERO,
    fluid: Array = ZERO,
    extra: Array = ZERO,
    tone: Array = ONE,
    start: CirculationState = REST,
) -> CirculationState:
    s = start
    for _ in range(round(minutes / step)):
        s = circulation.advance(s, YOUNG, step, fluid, bled, ZERO, extra, tone, ONE, ZERO)
    return s


def bleed(minutes: float = 30, *, step: float = 1.0) -> CirculationState:
    return follow(minutes, step=step, bled=SHARES * YOUNG.volume / minutes)


def test_rest_is_steady() -> None:
    s = follow(1440)
    assert s.heart_rate == pytest.approx(75, abs=1e-6)
    assert s.pressure == pytest.approx(90, abs=1e-6)
    assert s.output == pytest.approx(5500, abs=1e-3)


def test_blood_loss_follows_the_classes_of_shock() -> None:
    # ATLS, 10th edition 2018, table 3-1: class I (to 15 %) below 100/min and normal pressure, II (to 30 %) 100 to 120
    # and normal, III (30 to 40 %) 120 to 140 and falling, IV (above 40 %) above 140 and low.
    s = bleed()
    assert np.all(np.diff(s.heart_rate) > 0)
    assert np.all(np.diff(s.pressure) < 0)
    assert s.heart_rate[2] < 100
    assert s.pressure[2] > 82
    assert 100 < s.heart_rate[3] < 135
    assert s.pressure[3] > 78
    assert 130 < s.heart_rate[4] < 175
    assert 60 < s.pressure[4] < 78
    assert s.heart_rate[5] > 140
    assert s.pressure[5] < 60
    assert s.heart_rate.max() <= 208 - 0.7 * 40 + 1e-9


def test_volume_and_haemoglobin_are_conserved() -> None:
    s = follow(240, bled=SHARES * 10, fluid=ONE * 5)
    assert s.volume + s.tissue == pytest.approx(YOUNG.volume + 240 * (5 - SHARES * 10))
    untouched = follow(240, fluid=ONE * 5)
    assert untouched.haemoglobin == pytest.approx(REST.haemoglobin)
    assert np.all(s.haemoglobin[1:] < REST.haemoglobin[1:])


def test_fluid_brings_the_pressure_back_and_thins_the_blood() -> None:
    shocked = bleed()
    treated = follow(60, fluid=ONE * 30, start=shocked)
    left_alone = follow(60, start=shocked)
    assert np.all(treated.pressure[3:] > left_alone.pressure[3:] + 1)
    assert np.all(treated.heart_rate[3:] < left_alone.heart_rate[3:] - 10)
    assert np.all(treated.haemoglobin / treated.volume < left_alone.haemoglobin / left_alone.volume)


def test_two_thirds_of_a_fluid_leave_the_vessels() -> None:
    # The rule of three for one of ATLS; Bighamian 2016.
    s = follow(24 * 60, start=follow(30, fluid=ONE * 50))
    assert (s.volume - YOUNG.volume) / 1500 == pytest.approx(1 / 3, abs=0.01)


def test_dilation_raises_output_and_heart_rate_and_lowers_pressure() -> None:
    s = follow(60, tone=ONE * 0.5)
    assert np.all(s.output > 1.3 * REST.output)
    assert np.all(s.heart_rate > 85)
    assert np.all(s.pressure < 89)


def test_five_minutes_at_a_time_end_where_seconds_do() -> None:
    coarse, fine = bleed(60, step=5.0), bleed(60, step=0.25)
    coarse, fine = follow(30, step=5.0, start=coarse), follow(30, step=0.25, start=fine)
    middle = follow(30, step=1.0, start=bleed(60, step=1.0))
    error = np.abs(coarse.heart_rate - fine.heart_rate).max()
    assert error < 4
    assert np.abs(coarse.pressure - fine.pressure).max() < 4
    assert np.abs(middle.heart_rate - fine.heart_rate).max() < 0.4 * error
