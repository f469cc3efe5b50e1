"""The patients that a study may use, as tensors: who is in, in which part, and what a model sees of them.

Design note: a patient's tensors are a function of that patient's own record and of public constants. Nothing is
centred, scaled, filled in or weighted by other patients, so one patient's data touches one row and costs nothing.

A feature is a statistic of a signal in a time step (`series`), a fact repeated over time, one level of a category or
the site; every value is set to ± limit beyond it. Unknown is 0, with `mask` false. `carry_forward` fills mean, min,
max, first and last of a step without a value with the patient's own last value before it; `mask` still says that
nothing was measured. sd and slope are never carried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtwin_client.errors import DataError
from fedtwin_client.observation import Patients
from fedtwin_client.reader import HospitalRecords
from fedtwin_client.series import Cells, Series, select_series
from fedtwin_shared.signal import CATEGORIES, SIGNALS, normalise
from fedtwin_shared.study import LEVELS, Study, is_held_out

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

HINGE = 1.0  # of a typical standard deviation: where the two hinges of a value begin (`study.Series`)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Examples:
    """Patients as a model sees them, in increasing order of their id.

    x: f32[patients, windows, time, features]. mask: bool, same shape: known, or measured in this very step.
    y: f32[patients], the outcome. groups: bool[patients, groups]: everybody, then each level of each subgroup category.
    patients: their ids, for the hospital's own eyes.

    - a window after the patient's last observation is all 0 and unknown: windows are ragged by mask; the first is not
    - its repr shows no patient and no value
    """

    x: npt.NDArray[np.float32]
    mask: Flags
    y: npt.NDArray[np.float32]
    groups: Flags
    patients: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Cohort:
    """The patients of a study in their two parts."""

    train: Examples
    test: Examples


def missing_columns(records: HospitalRecords, study: Study) -> tuple[str, ...]:
    """Return the columns of the patients file that the study uses and this hospital does not have."""
    patients, features = records.patients, study.features
    part = ("part",) if study.split.rule == "column" else ()
    facts = (fact.signal for fact in features.facts)
    required = (key for key in study.cohort.requires if key not in SIGNALS)  # a signal may be measured instead
    needed = (study.outcome, *part, *facts, *features.categories, *study.evaluation.subgroups, *required)
    present = {*patients.numbers, *patients.levels, *patients.outcomes, *(() if patients.part is None else ("part",))}
    return tuple(dict.fromkeys(name for name in needed if name not in present))


def form_cohort(records: HospitalRecords, study: Study, site: str) -> Cohort:
    """Return the study's patients at `site`: those whose outcome and all of `cohort.requires` are known.

    Raises `DataError` when the patients file has no column for the outcome, or none for a split by column.

    - a patient's row is bit for bit the same whatever other patients there are
    - patients are in increasing order of their id
    - who is held out depends on the patient's own id alone (rule `hash`)
    """
    patients = records.patients
    if study.outcome not in patients.outcomes:
        raise _missing(records, study.outcome, "a column of 0 and 1")
    if study.split.rule == "column" and patients.part is None:
        raise _missing(records, "part", "a column of train and test")
    outcome = patients.outcomes[study.outcome]
    chosen = ~np.isnan(outcome)
    for key in study.cohort.requires:
        chosen &= _is_known(records, study, key)
    x, mask = _features(records, study, site)
    groups, part = _groups(patients, study), _parts(patients, study)

    def examples(name: str) -> Examples:
        rows = np.flatnonzero(chosen & (part == name))
        return Examples(
            x=x[rows],
            mask=mask[rows],
            y=outcome[rows].astype(np.float32),
            groups=groups[rows],
            patients=tuple(patients.ids[row] for row in rows),
        )

    return Cohort(train=examples("train"), test=examples("test"))


def keep_patients(cohort: Cohort, kept: Collection[str]) -> Cohort:
    """Return the cohort with nobody but `kept`, every row as it was; the same object where that is everybody."""
    parts = (cohort.train, cohort.test)
    if all(patient in kept for part in parts for patient in part.patients):
        return cohort
    train, test = (_keep(part, kept) for part in parts)
    return Cohort(train=train, test=test)


def _keep(part: Examples, kept: Collection[str]) -> Examples:
    rows = [row for row, patient in enumerate(part.patients) if patient in kept]
    return Examples(
        x=part.x[rows],
        mask=part.mask[rows],
        y=part.y[rows],
        groups=part.groups[rows],
        patients=tuple(part.patients[row] for row in rows),
    )


def _missing(records: HospitalRecords, name: str, expected: str) -> DataError:
    file = records.folder / records.tallies[0].file
    return DataError(file=file, field=name, expected=expected, found="no such column")


def _parts(patients: Patients, study: Study) -> npt.NDArray[np.str_]:
    """Return "train", "test" or "" (in neither part) for each patient."""
    if study.split.rule == "column":
        return np.array(patients.part or (), dtype=np.str_)
    named = ["test" if is_held_out(study.split, patient) else "train" for patient in patients.ids]
    return np.array(named, dtype=np.str_)


def _is_known(records: HospitalRecords, study: Study, key: str) -> Flags:
    """Return for each patient whether `key` is a known fact, level or outcome, or was measured in the study's time."""
    patients = records.patients
    known = np.zeros(len(patients), bool)
    for numbers in (patients.numbers, patients.outcomes):
        if key in numbers:
            known |= ~np.isnan(numbers[key])
    if key in patients.levels:
        known |= patients.levels[key] >= 0
    if key in SIGNALS:
        known[select_series(records.observations, patients, study.features, key).patient] = True
    return known


def _features(records: HospitalRecords, study: Study, site: str) -> tuple[npt.NDArray[np.float32], Flags]:
    """Return x and mask of all patients."""
    patients, features = records.patients, study.features
    series = {
        part.signal: select_series(records.observations, patients, features, part.signal) for part in features.series
    }
    steps = features.windows * features.steps
    shape = (len(patients), steps, len(study.feature_names()))
    x, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
    # strict: a feature without a channel would stay zero for everybody, and nobody would notice
    for at, (value, known) in zip(range(shape[2]), _channels(patients, study, site, series), strict=True):
        x[:, :, at], mask[:, :, at] = np.clip(value, -features.limit, features.limit), known
    # A window after the last observation does not exist for this patient.
    last = np.zeros(len(patients), np.int64)
    for one in series.values():
        np.maximum.at(last, one.patient, one.step // features.steps)
    beyond = np.arange(steps) // features.steps > last[:, None]
    x[beyond], mask[beyond] = 0.0, False
    windowed = (len(patients), features.windows, features.steps, shape[2])
    return x.reshape(windowed), mask.reshape(windowed)


def _channels(
    patients: Patients, study: Study, site: str, series: Mapping[str, Series]
) -> Iterator[tuple[Floats, Flags]]:
    """Yield value and known, each [patients, steps or 1], in the order of `Study.feature_names`."""
    features = study.features
    for part in features.series:
        cells = Cells(series[part.signal], patients=len(patients), steps=features.windows * features.steps)
        carried = cells.carried() if features.carry_forward else np.zeros(1)
        for statistic in part.statistics:
            value, known = cells.statistic(statistic, step_hours=features.step_hours)
            if features.carry_forward and statistic in LEVELS:
                value = np.where(known, value, carried)
            yield from _with_hinges(value, known, part.hinges and statistic in LEVELS)
    for fact in features.facts:
        number = patients.numbers.get(fact.signal, np.full(len(patients), np.nan))
        z = normalise(SIGNALS[fact.signal], number, limit=features.limit)[:, None]
        known = ~np.isnan(z)
        yield from _with_hinges(np.nan_to_num(z), known, fact.hinges)
        if fact.observed:
            yield known.astype(np.float64), np.ones(known.shape, bool)
    for key in features.categories:
        level = _level(patients, key)
        for index in range(len(CATEGORIES[key].levels)):
            yield (level == index).astype(np.float64), level >= 0
    if features.site_indicator:
        for participant in study.participants:
            here = np.full((len(patients), 1), float(participant.site == site))
            yield here, np.ones(here.shape, bool)


def _with_hinges(value: Floats, known: Flags, hinges: bool) -> Iterator[tuple[Floats, Flags]]:
    yield value, known
    if hinges:
        yield np.maximum(0.0, value - HINGE), known
        yield np.maximum(0.0, -value - HINGE), known


def _level(patients: Patients, key: str) -> Rows:
    return patients.levels.get(key, np.full(len(patients), -1))[:, None]


def _groups(patients: Patients, study: Study) -> Flags:
    columns = [np.ones((len(patients), 1), bool)]
    for key in study.evaluation.subgroups:
        columns.append(_level(patients, key) == np.arange(len(CATEGORIES[key].levels)))
    return np.concatenate(columns, axis=1)
