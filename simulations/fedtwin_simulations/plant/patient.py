"""Virtual patients: who they are, what they are like at rest, what will happen to them. Everything is drawn here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedtwin_simulations.plant import circulation, glucose, physiology, respiration, scenario
from fedtwin_simulations.plant.circulation import CirculationParameters, CirculationState
from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.glucose import GlucoseParameters, GlucoseState
from fedtwin_simulations.plant.physiology import BodyParameters, BodyState, Effects
from fedtwin_simulations.plant.respiration import RespirationParameters, RespirationState
from fedtwin_simulations.plant.scenario import NAMES, SCENARIOS

POOLING, SHUNTING = 11.0, 0.14  # mL/kg and share for each unit of a wave; assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """Whom a hospital admits. Shares are of patients; scenarios: weights by name, those left out are 0.

    severity: mean of the illness's size, 1 being the table of scenarios. frailty: factor on the waves.
    """

    age_mean: float = 65.0
    age_sd: float = 14.0
    male_share: float = 0.5
    type_one_share: float = 0.02
    type_two_share: float = 0.2
    smoker_share: float = 0.2
    adherence: float = 0.9
    severity: float = 0.5
    frailty: float = 1.0
    scenarios: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patients:
    """Some patients: facts[patients], and the parameters and state of rest of every organ.

    diabetes: 0 none, 1 type 1, 2 type 2. adherence: probability that a due dose is taken.
    """

    age: Array
    male: Array
    weight: Array
    height: Array
    diabetes: Array
    smoker: Array
    adherence: Array
    scenario: Array
    severity: Array
    circulation: CirculationParameters
    respiration: RespirationParameters
    body: BodyParameters
    effects: Effects
    glucose: GlucoseParameters
    rest: tuple[CirculationState, RespirationState, BodyState, GlucoseState]

    def __len__(self) -> int:
        return len(self.age)


def draw_patients(population: Population, count: int, generator: np.random.Generator) -> Patients:
    """Return `count` patients.

    Means of rest: heart rate 74/min (sd 9), mean pressure 88 mmHg (sd 8), 17 breaths/min (sd 2), cardiac index about
    3 L/min/m², oxygen 3.2 mL/min/kg, haemoglobin 13.8 and 12.8 g/dL; all assumed, typical of a ward.
    """
    age = np.clip(generator.normal(population.age_mean, population.age_sd, count), 18, 100).round()
    male = (generator.random(count) < population.male_share).astype(float)
    height = np.clip(generator.normal(163 + 13 * male, 7), 140, 205)
    weight = np.clip(generator.normal(26.5, 4, count), 17, 45) * (height / 100) ** 2
    dice = generator.random(count)
    diabetes = (dice < population.type_one_share) + 2.0 * (
        (dice >= population.type_one_share) & (dice < population.type_one_share + population.type_two_share)
    )
    smoker = (generator.random(count) < population.smoker_share).astype(float)
    kind, severity = _draw_illness(population, count, diabetes, generator)

    pressure = np.clip(generator.normal(86 + 0.1 * (age - 60), 8), 68, 115)
    heart_rate = np.clip(generator.normal(74, 9, count), 52, 100)
    surface = np.sqrt(height * weight / 3600)  # m², Mosteller 1987, N Engl J Med 317:1098
    output = 1000 * surface * np.clip(generator.normal(3.0, 0.35, count), 2.2, 4) * (1 - 0.004 * (age - 60))
    haemoglobin = np.clip(generator.normal(12.8 + male - 0.01 * (age - 60), 1.2), 9, 17)
    metabolism = 3.2 * weight * np.clip(generator.normal(1, 0.08, count), 0.75, 1.25)
    shunt = np.clip(generator.normal(0.045 + 0.0005 * (age - 60) + 0.015 * smoker, 0.012), 0.015, 0.12)
    # A stroke is at most 0.8 of the filling of rest: a smaller heart beats faster.
    filled = np.log1p(circulation.VENOUS_PRESSURE / circulation.FILLING_A) / circulation.FILLING_B
    output = np.minimum(output, 0.8 * filled * heart_rate)
    heart, beating = circulation.make_parameters(age, weight, heart_rate, pressure, output, haemoglobin=haemoglobin)
    lung, breathing = respiration.make_parameters(
        weight,
        np.clip(generator.normal(17, 2, count), 11, 24),
        np.clip(generator.normal(39, 2, count), 34, 46),
        shunt,
        metabolism,
        output=output,
        haemoglobin=haemoglobin,
    )
    body = _draw_body(population, kind, weight, male, generator)
    delivered = physiology.deliver(output, haemoglobin, breathing.saturation)
    body = body._replace(extraction=metabolism / delivered)
    fasting = np.select([diabetes == 1, diabetes == 2], [150.0, 164.0], 95.0) * generator.lognormal(0, 0.08, count)
    insulin = np.select([diabetes == 1, diabetes == 2], [100.0, 55.0], 25.0) * generator.lognormal(0, 0.15, count)
    sugar = glucose.make_parameters(diabetes, weight, fasting, insulin)
    zero = np.zeros(count)
    return Patients(
        age=age,
        male=male,
        weight=weight,
        height=height,
        diabetes=diabetes,
        smoker=smoker,
        adherence=np.clip(generator.normal(population.adherence, 0.05, count), 0, 1),
        scenario=kind,
        severity=severity,
        circulation=heart,
        respiration=lung,
        body=body,
        effects=scenario.make_effects(kind, severity, weight),
        glucose=sugar,
        rest=(
            beating,
            breathing,
            BodyState(
                temperature=body.temperature,
                lactate=body.lactate,
                creatinine=body.creatinine,
                healing=zero,
                strain=zero,
                **dict(zip(("vessels", "lungs", "heart", "breath"), generator.normal(size=(4, count)), strict=True)),
            ),
            glucose.rest(sugar),
        ),
    )


def _draw_illness(
    population: Population, count: int, diabetes: Array, generator: np.random.Generator
) -> tuple[Array, Array]:
    """Scenario number and severity. Only who has diabetes can have the scenario of hypoglycaemia; others are stable."""
    weights = np.array([population.scenarios.get(name, 0.0) for name in NAMES])
    kind = generator.choice(len(NAMES), size=count, p=weights / weights.sum()).astype(float)
    kind = np.where((kind == NAMES.index("hypoglycaemia")) & (diabetes == 0), NAMES.index("stable"), kind)
    return kind, np.minimum(generator.gamma(4.0, population.severity / 4.0, count), 2.0)


def _draw_body(
    population: Population, kind: Array, weight: Array, male: Array, generator: np.random.Generator
) -> BodyParameters:
    count, number = len(weight), kind.astype(int)
    low, high = (np.array([scenario.onset[end] for scenario in SCENARIOS])[number] for end in (0, 1))
    onset = generator.uniform(low, high) * 60
    low, high = (np.array([scenario.duration[end] for scenario in SCENARIOS])[number] for end in (0, 1))
    frail = population.frailty * np.clip(generator.normal(1.0, 0.15, (2, count)), 0.5, 1.5)
    return BodyParameters(
        weight=weight,
        temperature=np.clip(generator.normal(36.8, 0.2, count), 36.1, 37.4),
        lactate=np.clip(generator.lognormal(np.log(1.1), 0.2, count), 0.5, 2),
        creatinine=np.clip(generator.lognormal(np.log(0.8 + 0.15 * male), 0.25), 0.4, 3),
        extraction=np.zeros(count),
        pooling=POOLING * weight * frail[0],
        shunting=SHUNTING * frail[1],
        admitted=generator.uniform(0, 1440, count).round(),
        onset=onset,
        rise=np.array([scenario.rise for scenario in SCENARIOS])[number] * 60,
        end=onset + generator.uniform(low, high) * 60,
        fade=np.array([scenario.fade for scenario in SCENARIOS])[number] * 60,
    )
