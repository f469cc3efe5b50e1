"""What stands on a ward's board: every patient, the most urgent first, and one patient's page with the twin's numbers.

A line shows readings with their age; the twin's own numbers are on the page, each with age and interval.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedtwin_client.monitoring.alerts import Alert, Bundle
from fedtwin_client.monitoring.monitor import Monitor
from fedtwin_client.monitoring.surveillance import Surveillance
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_client.twins.channels import READ
from fedtwin_client.twins.patient_twin import is_stale
from fedtwin_client.twins.twins import Twins
from fedtwin_shared.signal import SIGNALS

SHOWN: Final = (
    *("heart_rate", "mean_pressure", "pulse_oximetry", "respiratory_rate"),
    *("temperature", "interstitial_glucose", "glucose"),
)
AHEAD: Final = (0.0, 30.0, 60.0)  # minutes
FRESH: Final = 1000  # milliseconds for which a board is the same for everybody who asks


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownReading:
    """The newest believed reading. age: milliseconds. stale: old for its signal."""

    signal: str
    unit: str
    value: float
    age: int
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ShownAlert:
    """One open alert. since: ms UTC."""

    rule: str
    priority: str
    stage: str
    since: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Line:
    """One patient on the board; priority and stage "" where nothing is open."""

    patient: str
    priority: str
    stage: str
    alerts: tuple[ShownAlert, ...]
    readings: tuple[ShownReading, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Board:
    """Everybody. time: ms UTC. missed: observations that the twins have not had from the feed; the store has them."""

    time: int
    missed: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Expected:
    """What the twin expects a sensor to read: median and 90 % interval. age: of the newest reading used; None: none."""

    signal: str
    unit: str
    minutes: float
    middle: float
    low: float
    high: float
    age: int | None
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Page:
    """One patient: their line, what the twin expects, its version, and what became of their observations."""

    line: Line
    expected: tuple[Expected, ...]
    version: str
    counts: dict[str, int]


class WardWatch:
    """A ward's surveillance that several threads may use: one feeds it, others read the board. `intake.Subscriber`."""

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        monitor: Monitor | None = None,
        twins: Twins | None = None,
        on_change: Callable[[list[Alert]], None] = lambda changed: None,
    ) -> None:
        """`clock`: ms since 1970 UTC. `on_change`: as of `Surveillance`; it must not come back here."""
        self._clock, self._lock = clock, threading.Lock()
        self._surveillance = Surveillance(clock=clock, monitor=monitor, twins=twins, on_change=on_change)
        self._board: Board | None = None

    def receive(self, batch: ObservationBatch, *, missed: int) -> None:
        """Take a batch."""
        with self._lock:
            self._surveillance.receive(batch, missed=missed)
            self._surveillance.tick()

    def forget(self, patient: str) -> None:
        """Drop everything about a patient."""
        with self._lock:
            self._surveillance.forget(patient)
            self._board = None

    def acknowledge(self, patient: str, *, by: str) -> None:
        """Note that someone has taken the patient's alerts."""
        with self._lock:
            self._surveillance.monitor.acknowledge(patient, by=by, now=self._clock())
            self._board = None

    def board(self) -> Board:
        """Return the board, at most a second old."""
        with self._lock:
            now = self._clock()
            if self._board is None or not 0 <= now - self._board.time < FRESH:
                self._board = _make_board(self._surveillance, now)
            return self._board

    def page(self, patient: str) -> Page | None:
        """Return a patient's page; None for one who is not known."""
        with self._lock:
            if patient not in self._surveillance.twins.patients:
                return None
            twin, now = self._surveillance.twins.twin(patient), self._clock()
            open_now = {bundle.patient: bundle for bundle in self._surveillance.monitor.bundles()}
            line = _make_line(self._surveillance, patient, open_now.get(patient), now)
        expected = [
            Expected(
                signal=signal,
                unit=SIGNALS[signal].unit,
                minutes=minutes,
                middle=one.middle,
                low=one.low,
                high=one.high,
                age=one.age,
                stale=one.stale,
            )
            for signal in SHOWN
            if signal in READ and signal in twin.used
            for minutes, one in zip(AHEAD, twin.forecast(signal, now=now, minutes=AHEAD), strict=True)
        ]
        return Page(line=line, expected=tuple(expected), version=twin.version, counts=dict(twin.counts))


def _make_board(watch: Surveillance, now: int) -> Board:
    bundles = watch.monitor.bundles()
    urgent = {bundle.patient: bundle for bundle in bundles}
    quiet = sorted(set(watch.twins.patients) - urgent.keys())
    lines = [_make_line(watch, patient, urgent.get(patient), now) for patient in (*urgent, *quiet)]
    return Board(time=now, missed=watch.missed, lines=tuple(lines))


def _make_line(watch: Surveillance, patient: str, bundle: Bundle | None, now: int) -> Line:
    latest = watch.latest(patient)
    readings = [
        ShownReading(
            signal=signal,
            unit=SIGNALS[signal].unit,
            value=latest[signal][1],
            age=max(0, now - latest[signal][0]),
            stale=is_stale(signal, now - latest[signal][0]),
        )
        for signal in SHOWN
        if signal in latest
    ]
    alerts = () if bundle is None else bundle.alerts
    return Line(
        patient=patient,
        priority="" if bundle is None else bundle.priority.name.lower(),
        stage="" if bundle is None else str(bundle.stage),
        alerts=tuple(
            ShownAlert(
                rule=alert.rule,
                priority=alert.priority.name.lower(),
                stage=str(alert.stage),
                since=alert.raised,
                words=alert.reason.words,
            )
            for alert in alerts
        ),
        readings=tuple(readings),
    )
