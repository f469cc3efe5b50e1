"""Glucose: the fasting state holds, a glucose load gives the published curve, insulin acts the right way."""

from __future__ import annotations

import numpy as np
import pytest

from fedtwin_simulations.plant import glucose
from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.glucose import GlucoseParameters, GlucoseState

ONE = np.ones(3)
# none, type 1, type 2; basal glucose and insulin of Dalla Man 2007 (normal, type 2) and its GIM (type 1)
SUGAR = glucose.make_parameters(
    np.array([0.0, 1.0, 2.0]),
    np.array([78.0, 78.0, 91.0]),
    np.array([92.0, 150.0, 164.0]),
    np.array([25.0, 100.0, 55.0]),
)


def follow(
    p: GlucoseParameters, *, grams: float = 0.0, units: float = 0.0, minutes: int = 360, step: float = 1.0
) -> tuple[Array, GlucoseState]:
    """Return glucose[minutes, patients] in mg/dL after one meal and injection, and the last state."""
    s = glucose.eat_and_inject(glucose.rest(p), p, ONE * grams * 1000, ONE * units * glucose.PMOL_PER_UNIT)
    curve = []
    for _ in range(minutes):
        curve.append(s.plasma / p.glucose_volume)
        for _ in range(round(1 / step)):
            s = glucose.advance(s, p, ONE, ONE, step)
    return np.array(curve), s


def test_the_fasting_state_is_steady() -> None:
    curve, s = follow(SUGAR, minutes=1440)
    assert np.ptp(curve, axis=0) == pytest.approx(0, abs=1e-9)
    assert s.plasma_insulin / SUGAR.insulin_volume == pytest.approx(SUGAR.basal_insulin)


def test_the_basal_flows_are_those_of_the_papers_table() -> None:
    # Dalla Man 2007, table I: Vm0 2.50 and 4.65, m6 0.6471 and 0.8118 (normal, type 2), from another basal state.
    assert SUGAR.vm0[[0, 2]] == pytest.approx([2.50, 4.65], rel=0.06)
    assert SUGAR.m6[[0, 2]] == pytest.approx([0.6471, 0.8118], rel=0.03)


def test_a_glucose_load_of_75_g_gives_the_published_curve() -> None:
    curve, _ = follow(SUGAR, grams=75)
    healthy, _, type_two = curve.T
    # WHO 2006 and ADA: below 140 mg/dL at 2 h is normal, 200 and more is diabetes; the peak is at 30 to 75 minutes.
    assert 120 < healthy.max() < 180
    assert 30 <= healthy.argmax() <= 75
    assert healthy[120] < 140
    assert type_two[120] >= 200
    assert healthy[300] == pytest.approx(92, abs=6)


def test_every_gram_that_is_eaten_is_absorbed_but_for_the_tenth_that_is_not() -> None:
    s = glucose.eat_and_inject(glucose.rest(SUGAR), SUGAR, ONE * 50_000, ONE * 0)
    absorbed = np.zeros(3)
    for _ in range(4000):
        absorbed += 0.1 * glucose.ABSORBED * SUGAR.k_abs * s.gut
        s = glucose.advance(s, SUGAR, ONE, ONE, 0.1)
    left = s.solid + s.liquid + s.gut
    assert absorbed + glucose.ABSORBED * left == pytest.approx(0.9 * 50_000, rel=1e-3)


def test_a_unit_of_insulin_lowers_glucose_in_type_1_and_never_below_zero() -> None:
    without, _ = follow(SUGAR)
    with_one, _ = follow(SUGAR, units=1)
    flood, s = follow(SUGAR, units=60, minutes=1440)
    # Walsh 2011, J Diabetes Sci Technol 5:129: 1,960 / daily dose, 20 mg/dL and more for each unit in the end;
    # six hours show most of it.
    assert 10 < (without - with_one)[:, 1].max() < 80
    assert flood.min() > 0
    assert min(float(np.min(part)) for part in s[:10]) > -1e-9


def test_less_sensitivity_means_more_glucose() -> None:
    s = glucose.rest(SUGAR)
    for _ in range(600):
        s = glucose.advance(s, SUGAR, 0.5 * ONE, ONE, 1.0)
    assert np.all(s.plasma > glucose.rest(SUGAR).plasma * 1.03)


def test_steps_of_one_minute_have_converged() -> None:
    coarse, fine = follow(SUGAR, grams=75, units=5), follow(SUGAR, grams=75, units=5, step=0.1)
    half = follow(SUGAR, grams=75, units=5, step=0.5)
    error = np.abs(coarse[0] - fine[0]).max()
    assert error < 0.3  # mg/dL; a meter is off by 10 % and more
    assert np.abs(half[0] - fine[0]).max() < 0.4 * error  # second order: a quarter
