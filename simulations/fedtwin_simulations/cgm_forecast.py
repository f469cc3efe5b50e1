"""How well the glucose twin forecasts real sensors, beside what needs no twin: the ShanghaiT1DM and T2DM patients.

Protocol: patients, not readings, are split in two by a digest of their number. Everything that is fitted (ridge,
boosting, the residual model and its interval, and the twin's population constants, which stand in `twins.glucose`)
saw the first half only; figures are of the second. A forecast at a reading uses that reading and earlier ones, and
meals and insulin up to then. Readings come every 15 minutes; one that lacks any of the last LAGS readings, or the one
at the horizon, is left out for every method alike.
Data: Zhao 2023, Sci Data 10:35.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

from fedtwin_client.twins.block import Block
from fedtwin_client.twins.channels import NORMAL_90, reading_variance
from fedtwin_client.twins.filter import Bank, Events, make_bank
from fedtwin_client.twins.glucose import CARBOHYDRATE, GLUCOSE, INSULIN
from fedtwin_client.twins.kernel import apply_events
from fedtwin_shared.errors import FedtwinError
from fedtwin_simulations.results import Bench, BenchRow

FILE: Final = "shanghai_cgm_long.csv.gz"
STEP: Final = 15  # minutes between readings
LAGS: Final = 12
HORIZONS: Final = (30, 60)
USUAL_MEAL: Final = 45.0  # g, where a meal is noted without its weight
CARBOHYDRATE_SHARE: Final = 0.3  # of the noted weight of food; bread and rice have more, vegetables and meat less
RAPID: Final = ("novolin r", "aspart", "glulisine", "lispro", "humulin r")
PREMIXED: Final = ("70/30", "50/50", "75/25", "25r", "30r", "50r")
PREMIXED_SHARE: Final = 0.3

COVERED: Final = (0.88, 0.92)
DELETED, DELETED_TOLERANCE = (0.0, 0.3, 0.6, 0.9), 0.03

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """One sensor period after the other, all [readings]. fitted: of a patient whom methods may be fitted to."""

    period: npt.NDArray[np.int64]
    minute: npt.NDArray[np.int64]
    glucose: Floats
    meal: Floats
    insulin: Floats
    fitted: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One method at one horizon on the patients that nothing was fitted to. covered: share inside the 90 % interval."""

    method: str
    minutes: int
    rmse: float
    covered: float | None
    forecasts: int


def read_readings(folder: Path) -> Readings:
    """Read the set. Raises `FedtwinError` where its file is not there."""
    path = folder / FILE
    if not path.is_file():
        raise FedtwinError(file=path, expected="the CGM readings of the ShanghaiT1DM and T2DM sets", found="no file")
    table = pd.read_csv(path, low_memory=False)
    table["time"] = pd.to_datetime(table["Date"], format="mixed")
    table = table.dropna(subset=["CGM (mg / dl)"]).sort_values(["cohort", "patient", "period", "time"], kind="stable")
    key = table["cohort"] + "-" + table["patient"].astype(str)
    period = (key + "-" + table["period"].astype(str)).factorize()[0]
    start = table.groupby(period)["time"].transform("min")
    bolus = pd.to_numeric(table["CSII - bolus insulin (Novolin R, IU)"], errors="coerce").fillna(0.0)
    return Readings(
        period=period.astype(np.int64),
        minute=np.asarray((table["time"] - start).dt.total_seconds() // 60, np.int64),
        glucose=table["CGM (mg / dl)"].to_numpy(np.float64),
        meal=np.array([_weigh_meal(text) for text in table["Dietary intake"]]),
        insulin=np.array([_count_rapid(text) for text in table["Insulin dose - s.c."]]) + bolus.to_numpy(np.float64),
        fitted=np.array([hashlib.sha256(text.encode()).digest()[0] % 2 == 0 for text in key]),
    )


def _weigh_meal(text: object) -> float:
    """Grams of carbohydrate, roughly: the set notes what was eaten, not what it holds."""
    if not isinstance(text, str) or not text.strip():
        return 0.0
    grams = [float(found) for found in re.findall(r"(\d+(?:\.\d+)?)\s*(?:g|ml)\b", text.lower())]
    return float(np.clip(CARBOHYDRATE_SHARE * sum(grams), 10.0, 90.0)) if grams else USUAL_MEAL


def _count_rapid(text: object) -> float:
    """Units that act within hours; long-acting insulin is part of the patient's basal level."""
    if not isinstance(text, str):
        return 0.0
    units = 0.0
    for part in re.split(r"[;\n]", text.lower()):
        found = re.search(r"(\d+(?:\.\d+)?)\s*iu", part)
        if found is None:
            continue
        premixed = any(name in part for name in PREMIXED)
        if premixed or any(name in part for name in RAPID):
            units += float(found.group(1)) * (PREMIXED_SHARE if premixed else 1.0)
    return units


def measure_skill(readings: Readings, *, block: Block = GLUCOSE) -> tuple[Skill, ...]:
    """Return every method's skill at every horizon, on the same forecasts."""
    lags, usable = _lag(readings)
    twin = forecast_twin(readings, block=block)
    found = []
    for minutes in HORIZONS:
        target, known = _target(readings, minutes)
        fit, test = usable & known & readings.fitted, usable & known & ~readings.fitted
        now, later = readings.glucose, target
        state = np.column_stack([lags, twin.state, twin.mean[minutes], np.sqrt(twin.variance[minutes])])
        residual = _boost(state[fit], (later - twin.mean[minutes])[fit])
        hybrid = twin.mean[minutes] + residual.predict(state)
        # Split conformal: the last third of the fitted periods sets the width, in units of the twin's own spread.
        spread = np.sqrt(twin.variance[minutes])
        width = _calibrate(readings, lags, twin, minutes, later, fit)
        forecasts: Mapping[str, tuple[Floats, Floats | None]] = {
            "persistence": (now, None),
            "ridge, 12 lags": (Ridge(alpha=1.0).fit(lags[fit], later[fit]).predict(lags), None),
            "gradient boosting, 12 lags": (_boost(lags[fit], (later - now)[fit]).predict(lags) + now, None),
            "twin": (twin.mean[minutes], NORMAL_90 * spread),
            "twin and learned residual": (hybrid, width * spread),
        }
        for method, (forecast, half) in forecasts.items():
            error = (later - forecast)[test]
            covered = None if half is None else float(np.mean(np.abs(error) <= half[test]))
            found.append(
                Skill(
                    method=method,
                    minutes=minutes,
                    rmse=float(np.sqrt(np.mean(error**2))),
                    covered=covered,
                    forecasts=int(test.sum()),
                )
            )
    return tuple(found)


def measure_deleted(readings: Readings, *, share: float, seed: int = 0, block: Block = GLUCOSE) -> tuple[Skill, ...]:
    """Return the twin's skill where so large a share of all readings, at random, never came; of the other patients."""
    kept = np.flatnonzero(np.random.default_rng(seed).random(len(readings.glucose)) >= share)
    kept = np.union1d(kept, np.flatnonzero(np.diff(readings.period, prepend=-1)))  # a period begins with a reading
    fewer = Readings(**{name: getattr(readings, name)[kept] for name in Readings.__slots__})
    twin, found = forecast_twin(fewer, block=block), []
    for minutes in HORIZONS:
        target, known = _target(readings, minutes)
        test = known[kept] & ~fewer.fitted
        error = (target[kept] - twin.mean[minutes])[test]
        half = NORMAL_90 * np.sqrt(twin.variance[minutes][test])
        found.append(
            Skill(
                method=f"twin, {share:.0%} of readings deleted",
                minutes=minutes,
                rmse=float(np.sqrt(np.mean(error**2))),
                covered=float(np.mean(np.abs(error) <= half)),
                forecasts=int(test.sum()),
            )
        )
    return tuple(found)


def bench_forecast(folder: Path, say: Callable[[str], None]) -> Bench:
    """Return all of it as one report."""
    readings = read_readings(folder)
    say(f"{len(readings.glucose):,} readings of {int(readings.period.max()) + 1} periods")
    skills = measure_skill(readings)
    rows = []
    for ours in (skill for skill in skills if skill.method.startswith("twin")):
        rivals = [skill for skill in skills if skill.minutes == ours.minutes and not skill.method.startswith("twin")]
        best = min(rivals, key=lambda skill: skill.rmse)
        low, high = COVERED
        covered = ours.covered is not None and low <= ours.covered <= high
        rows.append(
            BenchRow(
                case=f"{ours.minutes} minutes ahead, {ours.method}; 90 % interval covers {ours.covered:.1%}",
                ours=ours.rmse,
                baseline=best.rmse,
                baseline_name=f"the best of {len(rivals)}: {best.method}",
                unit="mg/dL, RMSE",
                goal=f"below the baseline, covering {low:.0%} to {high:.0%}",
                holds=ours.rmse < best.rmse and covered,
            )
        )
    for share in DELETED:
        say(f"{share:.0%} of readings deleted")
        for skill in measure_deleted(readings, share=share):
            covered = skill.covered is not None and abs(skill.covered - 0.9) <= DELETED_TOLERANCE
            rows.append(
                BenchRow(
                    case=f"{skill.minutes} minutes ahead, {skill.method}: share covered",
                    ours=float("nan") if skill.covered is None else skill.covered,
                    baseline=None,
                    baseline_name="",
                    unit="",
                    goal=f"0.9 within {DELETED_TOLERANCE:g}",
                    holds=covered,
                )
            )
    return Bench(bench="forecast", rows=tuple(rows))


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinForecasts:
    """The twin after each reading: state[readings, states], and mean and variance of what the sensor will read."""

    state: Floats
    mean: Mapping[int, Floats]
    variance: Mapping[int, Floats]


def forecast_twin(readings: Readings, *, block: Block = GLUCOSE) -> TwinForecasts:
    """Run every period's twin through its readings, and look ahead from each."""
    count = len(readings.glucose)
    bank = make_bank(block, int(readings.period.max()) + 1)
    turn = np.arange(count) - np.flatnonzero(np.diff(readings.period, prepend=-1))[readings.period]
    after = make_bank(block, count)
    for at in range(int(turn.max()) + 1):
        rows = np.flatnonzero(turn == at)
        period = readings.period[rows]
        apply_events(block, bank, _read(readings, rows, block))
        # Food and insulin that are noted with a reading act after it.
        for name, given in ((CARBOHYDRATE, readings.meal[rows]), (INSULIN, readings.insulin[rows])):
            bank.state[period, block.names.index(name)] += given.astype(np.float32)
        after.state[rows], after.clock[rows] = bank.state[period], bank.clock[period]
    mean: dict[int, Floats] = {}
    variance: dict[int, Floats] = {}
    state = after.state[:, : len(block.states)].astype(np.float64)
    ahead = Bank(state=after.state.copy(), clock=after.clock.copy(), strikes=after.strikes)
    for minutes in HORIZONS:
        found = apply_events(block, ahead, _look(after.clock + minutes * 60_000))
        mean[minutes] = found.mean.astype(np.float64)
        variance[minutes] = found.variance + reading_variance(block.channels[0], mean[minutes])
    return TwinForecasts(state=state, mean=mean, variance=variance)


def _read(readings: Readings, rows: npt.NDArray[np.int64], block: Block) -> Events:
    value = readings.glucose[rows]
    return Events(
        row=readings.period[rows],
        time=readings.minute[rows] * 60_000,
        channel=np.zeros(len(rows), np.int64),
        value=value.astype(np.float32),
        variance=reading_variance(block.channels[0], value).astype(np.float32),
        jump=np.full(len(rows), -1, np.int64),
        keep=np.ones(len(rows), np.float32),
        amount=np.zeros(len(rows), np.float32),
    )


def _look(time: npt.NDArray[np.int64]) -> Events:
    count = len(time)
    return Events(
        row=np.arange(count),
        time=time,
        channel=np.zeros(count, np.int64),
        value=np.full(count, np.nan, np.float32),
        variance=np.zeros(count, np.float32),
        jump=np.full(count, -1, np.int64),
        keep=np.ones(count, np.float32),
        amount=np.zeros(count, np.float32),
    )


def _lag(readings: Readings) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The last LAGS readings, newest first, and where each is there and in time."""
    lags, whole = np.empty((len(readings.glucose), LAGS)), np.ones(len(readings.glucose), bool)
    for lag in range(LAGS):
        lags[:, lag], there = _shifted(readings, -lag)
        whole &= there
    return lags, whole


def _target(readings: Readings, minutes: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    return _shifted(readings, minutes // STEP)


def _shifted(readings: Readings, steps: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    at = np.arange(len(readings.glucose)) + steps
    inside = (at >= 0) & (at < len(readings.glucose))
    at = np.clip(at, 0, len(readings.glucose) - 1)
    apart = np.abs(readings.minute[at] - readings.minute - steps * STEP)
    return readings.glucose[at], inside & (readings.period[at] == readings.period) & (apart <= abs(steps))


def _boost(inputs: Floats, target: Floats) -> Any:
    return HistGradientBoostingRegressor(
        max_iter=150, learning_rate=0.08, max_leaf_nodes=15, min_samples_leaf=100, l2_regularization=1.0, random_state=0
    ).fit(inputs, target)


def _calibrate(
    readings: Readings, lags: Floats, twin: TwinForecasts, minutes: int, later: Floats, fit: npt.NDArray[np.bool_]
) -> float:
    """Return how many of the twin's standard deviations hold 90 % of a residual model's errors on other periods."""
    held = readings.period % 3 == 0
    spread = np.sqrt(twin.variance[minutes])
    state = np.column_stack([lags, twin.state, twin.mean[minutes], spread])
    error = later - twin.mean[minutes]
    model = _boost(state[fit & ~held], error[fit & ~held])
    rest = fit & held
    return float(np.quantile(np.abs(error[rest] - model.predict(state[rest])) / spread[rest], 0.9))
