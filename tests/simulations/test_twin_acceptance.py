"""The gate for twins: what passes it, and that it compares the same patient with and without the one thing done."""

from __future__ import annotations

import numpy as np

from fedtwin_client.twins.twins import Twins
from fedtwin_simulations.twin_acceptance import (
    CGM,
    EVERY,
    QUESTIONS,
    START,
    Forecasts,
    Ward,
    accepts,
    compare,
    covers,
    judge,
)

MINUTE = 60_000
INSULIN = QUESTIONS[0]


def test_a_twin_that_knows_the_effect_passes_and_others_do_not() -> None:
    true = np.array([-10.0, -20.0, -40.0, 0.1])
    assert accepts(compare(INSULIN, true, true))
    assert accepts(compare(INSULIN, true, 0.85 * true))
    assert not accepts(compare(INSULIN, true, 0.6 * true))  # half to two thirds of the effect, as forecasters give
    assert not accepts(compare(INSULIN, true, 1.4 * true))
    assert not accepts(compare(INSULIN, true, -true))
    assert not accepts(compare(INSULIN, np.zeros(3), np.ones(3)))  # nothing to compare with is no proof
    mixed = compare(INSULIN, true, true * np.array([1, -1, 1, 1]))
    assert mixed.signs == 2 / 3  # the fourth effect is too small to have a sign
    assert mixed.error == 40 / 4


def test_intervals_that_are_too_narrow_or_too_wide_do_not_pass() -> None:
    def one(coverage: float) -> Forecasts:
        return Forecasts(signal=CGM, coverage=coverage, error=1.0, persistence=2.0, cases=100)

    assert [covers(one(value)) for value in (0.86, 0.87, 0.9, 0.93, 0.94, float("nan"))] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_branches_are_the_same_patient_and_twins_see_what_sensors_showed() -> None:
    ward = Ward(INSULIN.population, 2, hours=6, seed=3, signals=(CGM,))
    truth = ward.readings(ward.course)
    again = ward.readings(ward.branch(120, 60, None))[CGM]
    # Plasma is the same bits; the sensor's lag begins anew at the branch.
    assert np.array_equal(ward.branch(120, 60, None)["plasma"], ward.course["plasma"][:, 24:37])
    assert np.abs(again - truth[CGM][:, 24:37]).max() < 10
    twins = Twins()
    ward.show(twins, ward.observe(truth), 0, 180)
    ward.show(twins, ward.observe(truth), 180, 240)
    assert set(twins.patients) == set(ward.names)
    twin = twins.twin(ward.names[0])
    assert sum(twin.counts.values()) == 240 // EVERY
    (ahead,) = twin.forecast(CGM, now=START + 240 * MINUTE, minutes=[15.0])
    assert ahead.low < ahead.middle < ahead.high
    assert ahead.age == EVERY * MINUTE


def test_a_question_is_answered_for_every_patient_moment_and_minute() -> None:
    verdict = judge(INSULIN, patients=2, moments=(180, 240), seed=1)
    assert verdict.cases == 2 * 2 * 3
    assert verdict.effect > 0
    assert 0 < verdict.slope < 3  # insulin lowers glucose in the plant and in the twin
    assert verdict.signs == 1.0
