"""The patients that a study may use, as tensors: who is in, in which part, and what a model sees of them.

Design note: a patient's tensors are a function of that patient's own record and of public constants. Nothing is
centred, scaled, filled in or weighted by other patients, so one patient's data touches one row and costs nothing.
Statistics of a series are taken over z-scores (Signal table, ± limit), so that one wild value cannot move a mean far.

Statistics of one time step
    mean, min, max, first, last   of the z-scores
    sd       their standard deviation (divided by n); 0 for a single value
    slope    least-squares change of z per hour times the step's hours: the change over one step; from two values on
    count    log(1 + number of values)
    observed 1 or 0
All are set to ± limit beyond it. `count` and `observed` are always known; the others where something was measured.
`carry_forward` fills mean, min, max, first and last of a step without a value with the patient's own last value before
it; `mask` still says that nothing was measured. sd and slope are never carried. Everything else unknown is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedtwin_client.errors import DataError
from fedtwin_client.observation import SIGNAL_KEYS, Patients
from fedtwin_client.reader import HospitalRecords
from fedtwin_shared.signal import CATEGORIES, SIGNALS, normalise
from fedtwin_shared.study import Features, Statistic, Study, is_held_out

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

HINGE = 1.0  # of a typical standard deviation: where the two hinges of a statistic begin
_LEVELS = ("mean", "min", "max", "first", "last")
_ALWAYS_KNOWN = ("count", "observed")
_MICROSECONDS_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Examples:
    """Patients as a model sees them, in increasing order of their id.

    x: f32[patients, windows, time, features], 0 where unknown. mask: bool, same shape: known, or measured in this step.
    y: f32[patients], the outcome. groups: bool[patients, groups]: everybody, then each level of each subgroup category.
    patients: the ids, for the hospital's own eyes.

    - a window after the patient's last observation is all 0 and unknown: windows are ragged by mask
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """One signal's values inside the study's time, ordered by patient and time.

    patient: row; step: time step since admission; hour: hours since the step began; z: z-score.
    """

    patient: Rows
    step: Rows
    hour: Floats
    z: Floats


def missing_columns(records: HospitalRecords, study: Study) -> tuple[str, ...]:
    """Return the columns of the patients file that the study uses and the hospital does not have."""
    patients = records.patients
    wanted = [*(fact.signal for fact in study.features.facts), *study.features.categories, *study.evaluation.subgroups]
    present = {*patients.numbers, *patients.levels, *patients.outcomes, *(() if patients.part is None else ("part",))}
    needed = [study.outcome, *wanted, *(("part",) if study.split.rule == "column" else ())]
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
    series = dict(_series(records, study.features))
    chosen = ~np.isnan(outcome)
    for key in study.cohort.requires:
        chosen &= _is_known(records, study.features, key)
    x, mask = _features(records.patients, study, site, series)
    groups = _groups(patients, study)
    held_out = _held_out(patients, study)

    def examples(part: Flags) -> Examples:
        rows = np.flatnonzero(chosen & part)
        return Examples(
            x=x[rows],
            mask=mask[rows],
            y=outcome[rows].astype(np.float32),
            groups=groups[rows],
            patients=tuple(patients.ids[row] for row in rows),
        )

    return Cohort(train=examples(held_out == 0), test=examples(held_out == 1))


def _missing(records: HospitalRecords, name: str, expected: str) -> DataError:
    return DataError(file=records.folder / "patients", field=name, expected=expected, found="no such column")


def _held_out(patients: Patients, study: Study) -> Rows:
    """Return 0 for training patients, 1 for test patients, -1 for those in neither part."""
    if study.split.rule == "hash":
        return np.array([is_held_out(study.split, patient) for patient in patients.ids], dtype=np.int64)
    part = {"train": 0, "test": 1}
    return np.array([part.get(name, -1) for name in patients.part or ()], dtype=np.int64)


def _is_known(records: HospitalRecords, features: Features, key: str) -> Flags:
    """Return for each patient whether `key` is a known fact, level or outcome, or was measured in the study's time."""
    patients = records.patients
    known = np.zeros(len(patients), bool)
    if key in patients.numbers:
        known |= ~np.isnan(patients.numbers[key])
    if key in patients.levels:
        known |= patients.levels[key] >= 0
    if key in patients.outcomes:
        known |= ~np.isnan(patients.outcomes[key])
    if key in SIGNALS:
        known[_select(records, features, key).patient] = True
    return known


def _series(records: HospitalRecords, features: Features) -> Iterator[tuple[str, _Series]]:
    for part in features.series:
        yield part.signal, _select(records, features, part.signal)


def _select(records: HospitalRecords, features: Features, key: str) -> _Series:
    observations, patients = records.observations, records.patients
    rows = np.flatnonzero(observations.signal == SIGNAL_KEYS.index(key))
    patient = observations.patient[rows]
    since = observations.time[rows] - patients.admitted[patient]
    width = round(features.step_hours * _MICROSECONDS_PER_HOUR)
    step = since // width
    inside = (step >= 0) & (step < features.windows * features.steps)
    return _Series(
        patient=patient[inside],
        step=step[inside],
        hour=(since - step * width)[inside] / _MICROSECONDS_PER_HOUR,
        z=normalise(SIGNALS[key], observations.value[rows][inside], limit=features.limit),
    )


def _features(
    patients: Patients, study: Study, site: str, series: dict[str, _Series]
) -> tuple[npt.NDArray[np.float32], Flags]:
    """Return x and mask of all patients."""
    features = study.features
    steps = features.windows * features.steps
    shape = (len(patients), steps, len(study.feature_names()))
    x, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
    at = 0
    for value, known, hinges in _channels(patients, study, site, series):
        for column in (value, *(_hinges(value) if hinges else ())):
            x[:, :, at], mask[:, :, at] = column, known
            at += 1
    # A window after the last observation does not exist for this patient; the first one always does.
    last = np.zeros(len(patients), np.int64)
    for one in series.values():
        np.maximum.at(last, one.patient, one.step // features.steps)
    beyond = np.arange(steps) // features.steps > last[:, None]
    x[beyond], mask[beyond] = 0.0, False
    windowed = (len(patients), features.windows, features.steps, shape[2])
    return x.reshape(windowed), mask.reshape(windowed)


def _channels(
    patients: Patients, study: Study, site: str, series: dict[str, _Series]
) -> Iterator[tuple[Floats, Flags, bool]]:
    """Yield value, known and whether hinges follow, each [patients, steps or 1], in the order of `feature_names`."""
    features = study.features
    for part in features.series:
        steps = features.windows * features.steps
        cells = _Cells.of(series[part.signal], len(patients), steps)
        carried = cells.carried() if features.carry_forward else None
        for statistic in part.statistics:
            value, known = cells.statistic(statistic, features.step_hours)
            if carried is not None and statistic in _LEVELS:
                value = np.where(known, value, carried)
            yield np.clip(value, -features.limit, features.limit), known, part.hinges
    for fact in features.facts:
        number = patients.numbers.get(fact.signal, np.full(len(patients), np.nan))
        z = normalise(SIGNALS[fact.signal], number, limit=features.limit)[:, None]
        known = ~np.isnan(z)
        yield np.nan_to_num(z), known, fact.hinges
        if fact.observed:
            yield known.astype(np.float64), np.ones_like(known), False
    for key in features.categories:
        level = _level(patients, key)
        for index in range(len(CATEGORIES[key].levels)):
            yield (level == index).astype(np.float64), level >= 0, False
    if features.site_indicator:
        for participant in study.participants:
            here = np.full((len(patients), 1), float(participant.site == site))
            yield here, np.ones_like(here, dtype=bool), False


def _level(patients: Patients, key: str) -> Rows:
    return patients.levels.get(key, np.full(len(patients), -1))[:, None]


def _hinges(value: Floats) -> tuple[Floats, Floats]:
    return np.maximum(0.0, value - HINGE), np.maximum(0.0, -value - HINGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cells:
    """One signal's values grouped by patient and time step.

    cell: index of each group in [patients, steps]; start: its first value; count: how many.
    """

    shape: tuple[int, int]
    cell: Rows
    start: Rows
    count: Rows
    hour: Floats
    z: Floats

    @classmethod
    def of(cls, series: _Series, patients: int, steps: int) -> _Cells:
        cell = series.patient * steps + series.step
        start = np.flatnonzero(np.diff(cell, prepend=-1))
        count = np.diff(start, append=len(cell))
        return cls(shape=(patients, steps), cell=cell[start], start=start, count=count, hour=series.hour, z=series.z)

    def statistic(self, name: Statistic, step_hours: float) -> tuple[Floats, Flags]:
        """Return values, 0 where unknown, and where they are known; both [patients, steps]."""
        if name in _ALWAYS_KNOWN:
            value = np.log1p(self.count) if name == "count" else np.ones(len(self.cell))
            return self._spread(np.asarray(value))[0], np.ones(self.shape, bool)
        if name == "slope":
            several = self.count > 1
            value, known = self._spread(self._slope() * step_hours)
            known.reshape(-1)[self.cell[~several]] = False
            return value, known
        return self._spread(self._reduce(name))

    def carried(self) -> Floats:
        """Return [patients, steps]: the last value of the step or of the nearest one before it, 0 before the first."""
        value, known = self._spread(self._last())
        source = np.maximum.accumulate(np.where(known, np.arange(self.shape[1]), 0), axis=1)
        return np.asarray(np.take_along_axis(value, source, axis=1))

    def _spread(self, value: Floats) -> tuple[Floats, Flags]:
        values, known = np.zeros(self.shape), np.zeros(self.shape, bool)
        values.reshape(-1)[self.cell] = value
        known.reshape(-1)[self.cell] = True
        return values, known

    def _last(self) -> Floats:
        return np.asarray(self.z[self.start + self.count - 1])

    def _reduce(self, name: Statistic) -> Floats:
        if name == "first":
            return self.z[self.start]
        if name == "last":
            return self._last()
        if not len(self.z):
            return self.z
        if name in ("min", "max"):
            extreme = np.minimum if name == "min" else np.maximum
            return np.asarray(extreme.reduceat(self.z, self.start))
        return self._mean(self.z) if name == "mean" else np.sqrt(self._mean(self._centred(self.z) ** 2))

    def _slope(self) -> Floats:
        if not len(self.z):
            return self.z
        hour = self._centred(self.hour)
        spread = self._mean(hour**2)
        together = self._mean(hour * self._centred(self.z))
        return np.asarray(np.divide(together, spread, out=np.zeros_like(spread), where=spread > 0))

    def _mean(self, value: Floats) -> Floats:
        return np.asarray(np.add.reduceat(value, self.start) / self.count)

    def _centred(self, value: Floats) -> Floats:
        return np.asarray(value - np.repeat(self._mean(value), self.count))


def _groups(patients: Patients, study: Study) -> Flags:
    columns = [np.ones((len(patients), 1), bool)]
    for key in study.evaluation.subgroups:
        columns.append(_level(patients, key) == np.arange(len(CATEGORIES[key].levels)))
    return np.concatenate(columns, axis=1)
