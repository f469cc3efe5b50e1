"""From observations to alerts: twins, scores and forecasts of everybody, kept current by each batch.

Design note: a subscriber of the gateway's feed, on one thread, apart from training. A reading that the twin did not
believe raises nothing (an artefact, a stuck sensor); one that no twin reads, such as a coma score, counts for scores.
A score takes the newest reading of each of its parts that is not stale, and is not made where a part is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from fedtwin_client.monitoring.alerts import Alert
from fedtwin_client.monitoring.monitor import Monitor
from fedtwin_client.monitoring.scores import score_news2, score_qsofa, shock_index
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_client.twins.entries import Outcome
from fedtwin_client.twins.patient_twin import PatientTwin, is_stale
from fedtwin_client.twins.twins import Twins

FORECAST_EVERY: Final = 5 * 60_000  # milliseconds of a patient's time
ALERT_COMA_SCORE: Final = 15.0

_FORECASTS: Final = (
    ("glucose_below_70_in_30", "interstitial_glucose", 70.0, 30.0),
    ("glucose_below_70_in_60", "interstitial_glucose", 70.0, 60.0),
    ("saturation_below_90_in_30", "pulse_oximetry", 90.0, 30.0),
    ("pressure_below_65_in_30", "mean_pressure", 65.0, 30.0),
)
_SCORES: Final = frozenset({"news2", "qsofa", "shock_index"})
_GLUCOSE: Final = frozenset({"interstitial_glucose", "glucose"})
_BELIEVED: Final = frozenset({Outcome.USED, Outcome.NOT_READ})
_SCORED: Final = frozenset(
    {"respiratory_rate", "pulse_oximetry", "systolic_pressure", "heart_rate", "temperature", "glasgow"}
)


class Surveillance:
    """Watches a hospital's patients. Not for several threads at once."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        twins: Twins | None = None,
        monitor: Monitor | None = None,
        on_change: Callable[[list[Alert]], None] = lambda changed: None,
    ) -> None:
        """`clock`: ms since 1970 UTC. `on_change`: told of every alert that was raised, escalated or resolved."""
        self.twins, self.monitor = twins or Twins(), monitor or Monitor()
        self._clock, self._on_change = clock, on_change
        self._latest: dict[str, dict[str, tuple[int, float]]] = {}
        self._forecast: dict[str, int] = {}
        self.missed = 0  # observations that twins have yet to be given from the store

    def receive(self, batch: ObservationBatch, *, missed: int = 0) -> None:
        """Take a batch: `intake.Subscriber`."""
        self.missed += missed
        now = self._clock()
        observed = self.twins.receive(batch, now=now)
        changed: list[Alert] = []
        touched: dict[str, set[str]] = {}
        for at in np.argsort(batch.time, kind="stable"):
            if observed.outcome[at] not in _BELIEVED:
                continue
            patient, signal = batch.patients[batch.patient[at]], SIGNAL_KEYS[batch.signal[at]]
            time, value = int(batch.time[at]), float(batch.value[at])
            latest = self._latest.setdefault(patient, {})
            if time >= latest.get(signal, (time, 0.0))[0]:
                latest[signal] = (time, value)
            touched.setdefault(patient, set()).add(signal)
            measure = "glucose_now" if signal in _GLUCOSE else signal
            changed += self.monitor.take(patient, measure, value, time=time, now=now)
            surprise = float(observed.surprise[at])
            if surprise == surprise:
                changed += self.monitor.take(patient, "surprise", abs(surprise), time=time, now=now)
        for patient, signals in touched.items():
            if signals & _SCORED and self.monitor.measures & _SCORES:
                changed += self._score(patient, now)
            changed += self._look_ahead(patient, signals, now)
        self._tell(changed)

    def forget(self, patient: str) -> None:
        """Drop everything about a patient, who was erased or merged into another record: `intake.Subscriber`."""
        self.twins.forget(patient)
        self.monitor.forget(patient)
        self._latest.pop(patient, None)
        self._forecast.pop(patient, None)

    def tick(self) -> None:
        """Let time pass."""
        self._tell(self.monitor.tick(now=self._clock()))

    def take_risk(self, patient: str, risk: float, *, time: int) -> None:
        """Take the released model's calibrated risk, 0 to 1, as of `time`."""
        self._tell(self.monitor.take(patient, "risk", 100.0 * risk, time=time, now=self._clock()))

    def latest(self, patient: str) -> dict[str, tuple[int, float]]:
        """Return signal -> time and value of the newest believed reading."""
        return dict(self._latest.get(patient, {}))

    def _tell(self, changed: list[Alert]) -> None:
        if changed:
            self._on_change(changed)

    def _score(self, patient: str, now: int) -> list[Alert]:
        latest = self._latest[patient]
        known = {signal: value for signal, (time, value) in latest.items() if not is_stale(signal, now - time)}
        newest = max(latest[signal][0] for signal in _SCORED if signal in latest)

        def part(signal: str) -> float:
            return known.get(signal, float("nan"))

        oxygen = part("inspired_oxygen") > 21.0 or part("oxygen_flow") > 0
        coma = part("glasgow")
        news = score_news2(
            respiratory_rate=part("respiratory_rate"),
            pulse_oximetry=part("pulse_oximetry"),
            oxygen=float(oxygen),
            systolic_pressure=part("systolic_pressure"),
            heart_rate=part("heart_rate"),
            alert=coma if coma != coma else float(coma >= ALERT_COMA_SCORE),
            temperature=part("temperature"),
        )
        qsofa, whole = score_qsofa(
            respiratory_rate=part("respiratory_rate"), systolic_pressure=part("systolic_pressure"), glasgow=coma
        )
        index = shock_index(heart_rate=part("heart_rate"), systolic_pressure=part("systolic_pressure"))
        # Missing parts can only add points, so an incomplete score that is beyond a level is beyond it.
        measures = {"news2": float(news.total), "qsofa": float(qsofa), "shock_index": float(index)}
        if not bool(news.complete):
            measures["news2"] = measures["news2"] if measures["news2"] >= 5 else float("nan")
        if not bool(whole):
            measures["qsofa"] = measures["qsofa"] if measures["qsofa"] >= 2 else float("nan")
        return self._take_all(patient, measures.items(), newest, now)

    def _look_ahead(self, patient: str, signals: set[str], now: int) -> list[Alert]:
        newest = max(self._latest[patient][signal][0] for signal in signals)
        if newest - self._forecast.get(patient, newest - FORECAST_EVERY) < FORECAST_EVERY:
            return []
        self._forecast[patient] = newest
        if not any(measure in self.monitor.measures for measure, *_ in _FORECASTS):
            return []
        twin: PatientTwin = self.twins.twin(patient)
        measures = [
            (measure, 100.0 * twin.chance_below(signal, level, now=newest, minutes=minutes))
            for measure, signal, level, minutes in _FORECASTS
            if measure in self.monitor.measures
            and signal in twin.used
            and not is_stale(signal, now - twin.used[signal])
        ]
        return self._take_all(patient, measures, newest, now)

    def _take_all(self, patient: str, measures: Iterable[tuple[str, float]], time: int, now: int) -> list[Alert]:
        changed: list[Alert] = []
        for measure, value in measures:
            changed += self.monitor.take(patient, measure, value, time=time, now=now)
        return changed
