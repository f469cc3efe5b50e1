"""From batches to alerts, with the twin's judgement of readings in between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedtwin_client.monitoring.alerts import Alert, Stage
from fedtwin_client.monitoring.monitor import Monitor
from fedtwin_client.monitoring.rules import RULES
from fedtwin_client.monitoring.surveillance import Surveillance
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, make_batch

MINUTE = 60_000
START = 1_700_000_000_000


class Ward:
    """One patient's monitor, minute by minute."""

    def __init__(self) -> None:
        self.minute = 0
        self.changes: list[Alert] = []
        soon = [replace(rule, quiet=20 * MINUTE) for rule in RULES]
        self.watch = Surveillance(
            clock=lambda: START + self.minute * MINUTE, monitor=Monitor(soon), on_change=self.changes.extend
        )
        self.generator = np.random.default_rng(0)

    def pass_minutes(self, count: int, **values: float) -> None:
        for _ in range(count):
            self.minute += 1
            self.watch.receive(self.batch(values))
            self.watch.tick()

    def batch(self, values: dict[str, float]) -> ObservationBatch:
        noise = self.generator.normal(0, 0.4, len(values))
        return make_batch(
            patients=["p"],
            devices=["monitor"],
            patient=[0] * len(values),
            signal=[SIGNAL_KEYS.index(signal) for signal in values],
            time=[START + self.minute * MINUTE] * len(values),
            value=np.array(list(values.values())) + noise,
            device=[0] * len(values),
            sequence=[self.minute] * len(values),
            quality=[0] * len(values),
        )

    def rules(self, stage: Stage) -> set[str]:
        return {alert.rule for alert in self.changes if alert.stage is stage}


WELL = {
    "heart_rate": 75.0,
    "systolic_pressure": 125.0,
    "mean_pressure": 88.0,
    "pulse_oximetry": 97.0,
    "respiratory_rate": 16.0,
    "temperature": 37.0,
    "glasgow": 15.0,
}


def test_the_well_are_left_alone_and_artefacts_with_them() -> None:
    ward = Ward()
    for _ in range(3):
        ward.pass_minutes(20, **WELL)
        ward.pass_minutes(1, **{**WELL, "pulse_oximetry": 55.0, "heart_rate": 260.0})
    assert ward.changes == []


def test_the_ill_are_noticed_with_reasons_and_end_when_well_again() -> None:
    ward = Ward()
    ward.pass_minutes(60, **WELL)
    ill = {**WELL, "heart_rate": 128.0, "systolic_pressure": 88.0, "mean_pressure": 60.0, "respiratory_rate": 27.0}
    ward.pass_minutes(30, **ill)
    assert {"hypotension", "news2_high", "shock_index"} <= ward.rules(Stage.RAISED)
    assert "hypotension" in ward.rules(Stage.ESCALATED)
    (line,) = ward.watch.monitor.bundles()
    assert "mean pressure" in line.words
    assert "below 65" in line.words
    ward.pass_minutes(45, **WELL)
    assert {"hypotension", "news2_high"} <= ward.rules(Stage.RESOLVED)


def test_low_glucose_is_foreseen() -> None:
    ward = Ward()
    ward.pass_minutes(60, interstitial_glucose=150.0)
    for minute in range(60):
        ward.pass_minutes(1, interstitial_glucose=150.0 - 1.5 * minute)
        if "hypoglycaemia_30" in ward.rules(Stage.RAISED):
            break
    assert 70 < 150.0 - 1.5 * minute < 125


def test_an_incomplete_score_raises_nothing_but_what_is_certain() -> None:
    ward = Ward()
    ward.pass_minutes(30, heart_rate=75.0)
    assert "news2_medium" not in ward.rules(Stage.RAISED)
    ward = Ward()
    ward.pass_minutes(30, heart_rate=150.0, respiratory_rate=32.0)
    assert "news2_medium" in ward.rules(Stage.RAISED)


def test_a_forgotten_patient_leaves_the_board() -> None:
    ward = Ward()
    ward.pass_minutes(30, heart_rate=150.0, respiratory_rate=32.0)
    assert ward.watch.monitor.bundles()
    ward.watch.forget("p")
    assert ward.watch.monitor.bundles() == ()
    assert ward.watch.latest("p") == {}
    assert ward.watch.twins.patients == ()
