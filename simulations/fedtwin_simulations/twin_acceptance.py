"""Whether a twin may be believed: its forecasts and what-ifs against virtual patients whose true other course is known.

Design note: the plant's equations are not the twin's. A patient lives in the plant, a sensor shows the twin what it may
know, and at some moments the plant is branched: the same patient, state and noise, with and without one thing done. The
difference is the true effect; what the twin says about it is judged against it. Gate, with the thresholds that ship:
the effect's slope within 0.8 to 1.25, its sign right, and 90 % intervals that hold 87 to 93 % of the readings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import NO_SEQUENCE, Quality, make_batch
from fedtwin_client.twins.patient_twin import Intervention
from fedtwin_client.twins.twins import Dose, Twins
from fedtwin_shared.signal import SIGNALS
from fedtwin_simulations.plant.engine import Array
from fedtwin_simulations.plant.lifestyle import plan_days
from fedtwin_simulations.plant.patient import Patients, Population, draw_patients
from fedtwin_simulations.plant.sensor import CHANNELS
from fedtwin_simulations.plant.simulate import Act, Course, begin, read_signals, run
from fedtwin_simulations.results import Bench, BenchRow
from fedtwin_simulations.virtual_hospitals import CASE_MIXES

SLOPES = (0.8, 1.25)
COVERAGE = (0.87, 0.93)
SIGNS = 0.9  # share of patients in whom the effect has the true sign, where there is one to speak of
MINUTE = 60_000
ARRIVALS = 10  # minutes that arrive together: within what a twin still takes in any order
START = 1_700_000_000_000  # ms UTC; any
EVERY = 5  # minutes between two records of the plant, and two readings
LAG_MINUTES = 6.0  # of the interstitium behind plasma: Rebrin 1999, Am J Physiol 277:E561
GLUCOSE_NOISE = 4.0  # mg/dL, beside the lag: about the white part in Facchinetti 2014, Med Biol Eng Comput 53:1259
CGM = "interstitial_glucose"
FORECAST_MINUTES = (15.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One kind of what-if: what is done to whom, and the signal and minutes at which its effect is read.

    given: as the twin is asked. act: the same thing as the plant does it, amount for one unit of `amount`.
    smallest: effects below it, in the signal's unit, have no sign to speak of.
    """

    name: str
    signal: str
    kind: Literal["carbohydrate", "insulin", "oxygen"]
    amount: float
    minutes: tuple[float, ...]
    smallest: float
    population: Population


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How one question was answered, over patients, moments and minutes.

    slope: of the twin's effect on the true one, through the origin. error: mean absolute, in the signal's unit;
    effect: mean absolute true one. signs: share that is right among effects above `smallest`.
    """

    question: str
    slope: float
    error: float
    effect: float
    signs: float
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasts:
    """How often a reading fell into its 90 % interval; root mean square error, and that of the last reading held on."""

    signal: str
    coverage: float
    error: float
    persistence: float
    cases: int


_SUGAR = Population(type_one_share=1.0, type_two_share=0.0, age_mean=45.0, scenarios={"stable": 1.0})
_LUNGS = Population(severity=0.3, scenarios={"respiratory_failure": 1.0})  # saturations of a ward, untreated
QUESTIONS = (
    Question(
        name="3 units of insulin",
        signal=CGM,
        kind="insulin",
        amount=3.0,
        minutes=(60.0, 120.0, 180.0),
        smallest=5.0,
        population=_SUGAR,
    ),
    Question(
        name="15 g of carbohydrate",
        signal=CGM,
        kind="carbohydrate",
        amount=15.0,
        minutes=(60.0, 120.0, 180.0),
        smallest=5.0,
        population=_SUGAR,
    ),
    Question(
        name="oxygen 40 % for room air",
        signal="pulse_oximetry",
        kind="oxygen",
        amount=40.0,
        minutes=(20.0, 40.0),
        smallest=0.5,
        population=_LUNGS,
    ),
)
VITALS = ("heart_rate", "mean_pressure", "pulse_oximetry", "respiratory_rate")
WARD = CASE_MIXES[0].population


class Ward:
    """Some virtual patients, their lives so far, and the twins that saw what sensors showed."""

    def __init__(self, population: Population, patients: int, *, hours: int, seed: int, signals: Sequence[str]) -> None:
        generator = np.random.default_rng([seed, 1])
        self._seed, self._signals = seed, tuple(signals)
        self.patients: Patients = draw_patients(population, patients, generator)
        self.acts = plan_days(self.patients, minutes=(hours + 4) * 60, generator=generator)
        self.course = run(
            self.patients, begin(self.patients), minutes=hours * 60, seed=seed, acts=self.acts, every=EVERY
        )
        self.names = tuple(f"virtual-{row}" for row in range(patients))
        self._noise = np.random.default_rng([seed, 2])

    def readings(self, course: Course) -> dict[str, Array]:
        """Return what perfect sensors would read[patients, times]."""
        truth = read_signals(course, self.patients)
        return {signal: _lag(truth["glucose"]) if signal == CGM else truth[signal] for signal in self._signals}

    def observe(self, truth: Mapping[str, Array]) -> dict[str, Array]:
        """Return what sensors showed: the truth with the noise of the plant's own devices."""
        shown = {}
        for signal, values in truth.items():
            noise = GLUCOSE_NOISE if signal == CGM else CHANNELS[signal].noise
            table = SIGNALS[signal]
            shown[signal] = np.clip(values + noise * self._noise.standard_normal(values.shape), table.low, table.high)
        return shown

    def show(self, twins: Twins, shown: Mapping[str, Array], begin: int, until: int) -> None:
        """Tell the twins of doses and readings from minute `begin` to before `until`, as they would arrive."""
        for start in range(begin, until, ARRIVALS):
            columns = np.arange(start // EVERY, min(start + ARRIVALS, until) // EVERY)
            for act in self.acts:
                if act.kind in ("carbohydrate", "insulin"):
                    inside = (act.amount > 0) & (act.minute >= start) & (act.minute < min(start + ARRIVALS, until))
                    for row in np.flatnonzero(inside):
                        at = START + round(float(act.minute[row])) * MINUTE
                        twins.give(self.names[row], [Dose(kind=act.kind, amount=float(act.amount[row]), time=at)])
            shape = (len(shown), len(self.names), len(columns))
            signal, patient, column = (one.ravel() for one in np.indices(shape))
            keys = np.array([SIGNAL_KEYS.index(key) for key in shown])
            twins.receive(
                make_batch(
                    patients=self.names,
                    devices=("virtual",),
                    patient=patient,
                    signal=keys[signal],
                    time=START + columns[column] * EVERY * MINUTE,
                    value=np.stack([values[:, columns] for values in shown.values()]).ravel(),
                    device=np.zeros(len(signal)),
                    sequence=np.full(len(signal), NO_SEQUENCE),
                    quality=np.full(len(signal), Quality.VALID),
                ),
                now=START + until * MINUTE,
            )

    def branch(self, at: int, minutes: int, act: Act | None) -> Course:
        """Return the course from minute `at` on, with one more act or as it was."""
        before = run(
            self.patients, begin(self.patients), minutes=at, seed=self._seed, acts=self.acts, every=at or EVERY
        )
        acts = self.acts if act is None else (*self.acts, act)
        return run(self.patients, before.end, minutes=minutes, seed=self._seed, acts=acts, every=EVERY)


def _lag(glucose: Array) -> Array:
    """Return interstitial[patients, times] behind plasma."""
    share, found = 1 - np.exp(-EVERY / LAG_MINUTES), np.array(glucose)
    for at in range(1, glucose.shape[1]):
        found[:, at] = found[:, at - 1] + share * (glucose[:, at] - found[:, at - 1])
    return found


def judge(question: Question, *, patients: int, moments: Sequence[int], seed: int) -> Verdict:
    """Ask the twins what an intervention would do at each of the `moments`, minutes, and compare with what it does."""
    longest = int(max(question.minutes))
    ward = Ward(question.population, patients, hours=max(moments) // 60 + 4, seed=seed, signals=(question.signal,))
    shown = ward.observe(ward.readings(ward.course))
    expected: list[float] = []
    true: list[float] = []
    places = [round(one / EVERY) for one in question.minutes]
    twins, known = Twins(), 0
    for at in moments:
        ward.show(twins, shown, known, at)
        known = at
        act = _as_act(question, at, longest, len(ward.patients))
        with_it, without = (ward.readings(ward.branch(at, longest, one))[question.signal] for one in (act, None))
        now = START + at * MINUTE
        for row, name in enumerate(ward.names):
            asked = [Intervention(kind=question.kind, amount=question.amount, time=now)]
            answer = twins.twin(name).simulate(asked, now=now, minutes=question.minutes)
            expected += [done.middle - undone.middle for done, undone in zip(answer.done, answer.undone, strict=True)]
            true += (with_it[row, places] - without[row, places]).tolist()
    return compare(question, np.array(true), np.array(expected))


def _as_act(question: Question, at: int, minutes: int, patients: int) -> Act:
    """The same thing as the plant does it; oxygen is a share above room air there."""
    amount = (question.amount - 21.0) / 100 if question.kind == "oxygen" else question.amount
    begins = np.full(patients, float(at))
    return Act(kind=question.kind, minute=begins, amount=np.full(patients, amount), minutes=float(minutes))


def compare(question: Question, true: Array, expected: Array) -> Verdict:
    """Return the verdict on effects as they were and as they were expected."""
    speaks = np.abs(true) >= question.smallest
    return Verdict(
        question=question.name,
        slope=float((true * expected).sum() / max((true**2).sum(), 1e-12)),
        error=float(np.abs(expected - true).mean()),
        effect=float(np.abs(true).mean()),
        signs=float((np.sign(expected) == np.sign(true))[speaks].mean()) if speaks.any() else float("nan"),
        cases=len(true),
    )


def judge_forecasts(
    population: Population, signals: Sequence[str], *, patients: int, moments: Sequence[int], seed: int
) -> list[Forecasts]:
    """Return how well the twins' intervals held the readings that came 15, 30 and 60 minutes later."""
    ward = Ward(population, patients, hours=max(moments) // 60 + 2, seed=seed, signals=signals)
    shown = ward.observe(ward.readings(ward.course))
    inside: dict[str, list[bool]] = {signal: [] for signal in signals}
    errors: dict[str, list[tuple[float, float]]] = {signal: [] for signal in signals}
    twins, known = Twins(), 0
    for at in moments:
        ward.show(twins, shown, known, at)
        known = at
        for row, name in enumerate(ward.names):
            twin = twins.twin(name)
            for signal in signals:
                last = shown[signal][row, at // EVERY - 1]
                for one in twin.forecast(signal, now=START + at * MINUTE, minutes=FORECAST_MINUTES):
                    came = shown[signal][row, round((one.at - START) / MINUTE / EVERY)]
                    inside[signal].append(bool(one.low <= came <= one.high))
                    errors[signal].append((one.middle - came, last - came))
    found = []
    for signal in signals:
        squares = np.square(np.array(errors[signal])).mean(axis=0)
        found.append(
            Forecasts(
                signal=signal,
                coverage=float(np.mean(inside[signal])),
                error=float(np.sqrt(squares[0])),
                persistence=float(np.sqrt(squares[1])),
                cases=len(inside[signal]),
            )
        )
    return found


def accepts(verdict: Verdict) -> bool:
    """Return whether what-ifs of this kind pass the gate; NaN does not."""
    return bool(SLOPES[0] <= verdict.slope <= SLOPES[1] and verdict.signs >= SIGNS)


def covers(forecasts: Forecasts) -> bool:
    """Return whether the intervals pass the gate; NaN does not."""
    return bool(COVERAGE[0] <= forecasts.coverage <= COVERAGE[1])


def bench_twin_acceptance(say: Callable[[str], None], *, patients: int = 30, seed: int = 0) -> Bench:
    """Put every block's forecasts and every kind of what-if to the gate; a row that does not hold did not pass."""
    moments = [hour * 60 for hour in (30, 34, 38, 42)]
    rows = []
    say("forecasts")
    forecasts = judge_forecasts(_SUGAR, (CGM,), patients=patients, moments=moments, seed=seed)
    forecasts += judge_forecasts(WARD, VITALS, patients=patients, moments=moments, seed=seed)
    for one in forecasts:
        rows.append(
            BenchRow(
                case=f"{one.signal}: readings in their 90 % interval, {one.cases} forecasts of 15 to 60 minutes",
                ours=one.coverage,
                baseline=None,
                baseline_name="",
                unit="share",
                goal=f"{COVERAGE[0]:g} to {COVERAGE[1]:g}",
                holds=covers(one),
            )
        )
        rows.append(
            BenchRow(
                case=f"{one.signal}: error of the forecast",
                ours=one.error,
                baseline=one.persistence,
                baseline_name="the last reading held on",
                unit=SIGNALS[one.signal].unit,
                goal="below the last reading held on",
                holds=one.error < one.persistence,
            )
        )
    for question in QUESTIONS:
        say(question.name)
        verdict = judge(question, patients=patients, moments=moments, seed=seed)
        rows.append(
            BenchRow(
                case=f"{verdict.question}: slope of the expected effect on the true one, signs {verdict.signs:.0%}, "
                f"error {verdict.error:.3g} of {verdict.effect:.3g}",
                ours=verdict.slope,
                baseline=None,
                baseline_name="",
                unit="1",
                goal=f"{SLOPES[0]:g} to {SLOPES[1]:g}, signs at least {SIGNS:.0%}",
                holds=accepts(verdict),
            )
        )
    return Bench(bench="twin-acceptance", rows=tuple(rows))
