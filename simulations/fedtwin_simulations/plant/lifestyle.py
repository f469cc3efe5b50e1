"""What patients do themselves, or what is done every day: meals, and insulin for them, taken or forgotten.

Three meals of 40 to 80 g of carbohydrate around 7:30, 12:30 and 18:00; who has diabetes type 1 injects one unit for
each 10 g, every second type 2 one for 15 g, each with the patient's own adherence (all assumed). In the scenario of
hypoglycaemia the dose is doubled and the meal left. After surgery the first 8 hours are without food.
"""

from __future__ import annotations

import numpy as np

from fedtwin_simulations.plant.patient import Patients
from fedtwin_simulations.plant.scenario import NAMES
from fedtwin_simulations.plant.simulate import Act

MEALS = (7.5 * 60, 12.5 * 60, 18 * 60.0)  # minutes since midnight
JITTER = 25.0  # minutes, sd
SMALLEST, LARGEST = 40.0, 80.0  # g
GRAMS_PER_UNIT = (np.inf, 10.0, 15.0)  # by diabetes
TREATED_TYPE_TWO = 0.5
FASTING_MINUTES = 8 * 60


def plan_days(patients: Patients, *, minutes: int, generator: np.random.Generator) -> tuple[Act, ...]:
    """Return the meals and injections of everybody in the first `minutes` after admission."""
    count = len(patients)
    injects = (patients.diabetes == 1) | ((patients.diabetes == 2) & (generator.random(count) < TREATED_TYPE_TWO))
    wrong = patients.scenario == NAMES.index("hypoglycaemia")
    surgical = patients.scenario == NAMES.index("postoperative")
    grams_per_unit = np.array(GRAMS_PER_UNIT)[patients.diabetes.astype(int)]
    acts: list[Act] = []
    for day in range(minutes // 1440 + 2):
        for clock in MEALS:
            minute = day * 1440 + clock - patients.body.admitted + generator.normal(0, JITTER, count)
            grams = generator.uniform(SMALLEST, LARGEST, count)
            taken = generator.random(count) < patients.adherence
            inside = (minute >= 0) & ~(surgical & (minute < FASTING_MINUTES))
            ill = wrong & (minute >= patients.body.onset) & (minute < patients.body.end)
            eaten = np.where(inside & ~ill, grams, 0.0)
            units = np.where(inside & taken & injects, grams / grams_per_unit, 0.0) * np.where(ill, 2.0, 1.0)
            if eaten.any():
                acts.append(Act(kind="carbohydrate", minute=minute, amount=eaten))
            if units.any():
                acts.append(Act(kind="insulin", minute=minute - 10, amount=units.round(1)))
    return tuple(acts)
