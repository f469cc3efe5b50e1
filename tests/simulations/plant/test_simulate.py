"""Whole patients: engines agree, branches are the same patient, illnesses and treatments go the right way."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from fedtwin_simulations.plant import temperature
from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.outcome import attainable_auroc, compute_risk, draw_outcomes
from fedtwin_simulations.plant.patient import Patients, Population, draw_patients
from fedtwin_simulations.plant.physiology import Effects
from fedtwin_simulations.plant.scenario import NAMES
from fedtwin_simulations.plant.simulate import Act, Course, Engine, begin, read_signals, run

COUNT = 60
ENGINES: tuple[Engine, ...] = ("compiled", "numpy")


@functools.cache
def ward(scenario: str, *, type_one_share: float = 0.0) -> Patients:
    """Return patients with one scenario that began at admission, at full size."""
    patients = draw_patients(
        Population(scenarios={scenario: 1.0}, type_one_share=type_one_share, type_two_share=0.0),
        COUNT,
        np.random.default_rng(3),
    )
    size = 1 / np.where(patients.severity > 0, patients.severity, 1)
    effects = Effects(*(part * size for part in patients.effects))
    end = patients.body.end if scenario == "postoperative" else np.full(COUNT, 1440.0)
    return dataclasses.replace(patients, effects=effects, body=patients.body._replace(onset=np.zeros(COUNT), end=end))


def follow(patients: Patients, *acts: Act, hours: int = 12, noise: float = 0.0, engine: Engine = "compiled") -> Course:
    return run(patients, begin(patients), minutes=60 * hours, seed=1, acts=acts, noise=noise, engine=engine)


def change(scenario: str, signal: str, *acts: Act, hour: int = 12) -> Array:
    """Return how much more of a signal the scenario's patients have at an hour than the same patients when stable."""
    patients = ward(scenario)
    calm = dataclasses.replace(patients, effects=Effects(*(np.zeros(COUNT) for _ in Effects._fields)))
    ill, well = follow(patients, *acts), follow(calm)
    return (read_signals(ill, patients)[signal] - read_signals(well, calm)[signal])[:, hour]


def test_the_engines_agree() -> None:
    patients = draw_patients(Population(scenarios=dict.fromkeys(NAMES, 1.0)), 40, np.random.default_rng(0))
    meal = Act(kind="carbohydrate", minute=np.full(40, 90.0), amount=np.full(40, 60.0))
    one, other = (follow(patients, meal, hours=6, noise=1.0, engine=engine) for engine in ENGINES)
    assert one.states == pytest.approx(other.states, rel=1e-6, abs=1e-9)
    assert np.isfinite(one.states).all()


def test_a_branch_without_an_act_is_the_trunk_to_the_bit() -> None:
    patients = ward("sepsis")
    whole = run(patients, begin(patients), minutes=600, seed=5)
    half = run(patients, begin(patients), minutes=250, seed=5)
    rest = run(patients, half.end, minutes=350, seed=5)
    assert rest.end.state.tobytes() == whole.end.state.tobytes()


def test_an_act_changes_nothing_before_its_minute_and_no_other_patient() -> None:
    patients = ward("sepsis")
    amount = np.where(np.arange(COUNT) % 2 == 0, 1000.0, 0.0)
    fluid = Act(kind="fluid", minute=np.full(COUNT, 300.0), amount=amount, minutes=30)
    plain, treated = (
        run(patients, begin(patients), minutes=600, seed=5, acts=acts, every=5) for acts in ((), (fluid,))
    )
    same = (plain.states == treated.states).all(axis=2)
    assert same[:, plain.minutes <= 300].all()
    assert same[1::2].all()
    assert not same[::2, plain.minutes > 300].any()
    # The counterfactual: with the same noise, every single patient's difference is the treatment's.
    later = plain.minutes == 400
    assert np.all(treated["volume"][::2, later] > plain["volume"][::2, later])


def test_sepsis_is_fast_warm_and_short_of_oxygen() -> None:
    assert np.median(change("sepsis", "heart_rate")) > 20
    assert np.median(change("sepsis", "mean_pressure")) < -3
    assert np.median(change("sepsis", "temperature")) == pytest.approx(2, abs=0.4)
    assert np.median(change("sepsis", "respiratory_rate")) > 4
    assert np.median(change("sepsis", "lactate")) > 1
    assert np.median(change("sepsis", "glucose")) > 2


def test_haemorrhage_is_fast_low_and_thin() -> None:
    assert np.median(change("haemorrhage", "heart_rate")) > 20
    assert np.median(change("haemorrhage", "mean_pressure")) < -2
    assert np.median(change("haemorrhage", "hematocrit")) < -3


def test_respiratory_failure_is_desaturated_and_quick() -> None:
    assert np.median(change("respiratory_failure", "pulse_oximetry")) < -5
    assert np.median(change("respiratory_failure", "respiratory_rate")) > 8


def test_after_surgery_everything_fades() -> None:
    early, late = (np.median(change("postoperative", "heart_rate", hour=hour)) for hour in (2, 12))
    assert early > 1.15 * late > 0


def test_oxygen_helps_the_hypoxic_and_pressors_the_dilated() -> None:
    oxygen = Act(kind="oxygen", minute=np.zeros(COUNT), amount=np.full(COUNT, 0.4), minutes=720)
    assert np.all(
        change("respiratory_failure", "pulse_oximetry", oxygen) > change("respiratory_failure", "pulse_oximetry")
    )
    pressor = Act(kind="pressor", minute=np.zeros(COUNT), amount=np.full(COUNT, 0.8), minutes=720)
    assert np.all(change("sepsis", "mean_pressure", pressor) > change("sepsis", "mean_pressure"))
    cure = Act(kind="treatment", minute=np.zeros(COUNT), amount=np.full(COUNT, 1.0), minutes=720)
    assert np.all(change("sepsis", "temperature", cure) < 0.5)


def test_too_much_insulin_is_hypoglycaemia_and_the_heart_answers() -> None:
    patients = ward("stable", type_one_share=1.0)
    insulin = Act(kind="insulin", minute=np.zeros(COUNT), amount=np.full(COUNT, 15.0))
    sugar = Act(kind="carbohydrate", minute=np.full(COUNT, 120.0), amount=np.full(COUNT, 40.0))
    plain, low, rescued = follow(patients), follow(patients, insulin), follow(patients, insulin, sugar)
    at = [read_signals(course, patients)["glucose"][:, 5] for course in (plain, low, rescued)]
    assert np.median(at[1]) < 70 < np.median(at[0])
    assert np.all(at[2] > at[1])
    assert np.mean(low["heart_rate"][:, 5] - plain["heart_rate"][:, 5]) > 0.5


def test_everybody_stays_in_a_body() -> None:
    patients = draw_patients(
        Population(scenarios=dict.fromkeys(NAMES, 1.0), severity=1.0), 400, np.random.default_rng(2)
    )
    course = run(patients, begin(patients), minutes=2880, seed=2)
    assert np.isfinite(course.states).all()
    for name, low, high in (
        ("heart_rate", 40, 200),
        ("pressure", 0, 180),
        ("saturation", 0.3, 1),
        ("carbon_dioxide", 10, 150),
        ("temperature", 35, 43),
        ("plasma", 0, 2000),
        ("volume", 500, 12000),
    ):
        assert low <= course[name].min(), name
        assert course[name].max() <= high, name


def test_the_temperature_follows_its_set_point_exactly() -> None:
    once = temperature.advance(np.array(37.0), np.array(39.0), 120.0)
    twice = temperature.advance(temperature.advance(np.array(37.0), np.array(39.0), 60.0), np.array(39.0), 60.0)
    assert once == pytest.approx(float(twice))
    assert 38.6 < once < 39


def test_the_risk_is_the_best_score_and_its_auroc_is_known() -> None:
    generator = np.random.default_rng(0)
    risk = compute_risk(generator.gamma(1, 0.2, 4000), np.full(4000, 65.0))
    outcome = draw_outcomes(risk, generator).astype(float)
    positive, negative = risk[outcome == 1], risk[outcome == 0]
    measured = np.mean(positive[:, None] > negative[None, :])
    assert attainable_auroc(risk) == pytest.approx(measured, abs=0.02)
    assert outcome.mean() == pytest.approx(risk.mean(), abs=0.02)
    assert attainable_auroc(np.full(10, 0.3)) == pytest.approx(0.5)


@pytest.mark.parametrize("minutes", [7, -5])
def test_only_whole_ticks_are_run(minutes: int) -> None:
    patients = ward("stable")
    with pytest.raises(ValueError, match="multiples of 5"):
        run(patients, begin(patients), minutes=minutes, seed=0)
