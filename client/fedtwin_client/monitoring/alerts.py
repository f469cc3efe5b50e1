"""An alert and its life: raised → acknowledged → escalated → resolved. Records and functions, no clock and no state.

Priorities after IEC 60601-1-8:2006 + A2:2020, table 1: by what happens when nobody answers, and how soon.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Final

MINUTE: Final = 60_000


class Harm(IntEnum):
    """What may follow when nobody responds."""

    DISCOMFORT = 0  # or a minor injury
    REVERSIBLE = 1
    DEATH = 2  # or an injury that cannot be reversed


class Onset(IntEnum):
    """How soon it may follow."""

    DELAYED = 0
    PROMPT = 1
    IMMEDIATE = 2


class Priority(IntEnum):
    """Of an alarm signal."""

    LOW = 0
    MEDIUM = 1
    HIGH = 2


_TABLE: Final = {
    Harm.DISCOMFORT: (Priority.LOW, Priority.LOW, Priority.MEDIUM),
    Harm.REVERSIBLE: (Priority.LOW, Priority.MEDIUM, Priority.HIGH),
    Harm.DEATH: (Priority.MEDIUM, Priority.HIGH, Priority.HIGH),
}
ESCALATE_AFTER: Final = {Priority.HIGH: 2 * MINUTE, Priority.MEDIUM: 10 * MINUTE, Priority.LOW: 60 * MINUTE}


def prioritise(harm: Harm, onset: Onset) -> Priority:
    """Return the priority of the standard's table.

    >>> prioritise(Harm.DEATH, Onset.PROMPT).name
    'HIGH'
    """
    return _TABLE[harm][onset]


class Stage(StrEnum):
    """Where an alert is in its life."""

    RAISED = "raised"
    ACKNOWLEDGED = "acknowledged"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reason:
    """Why, in words, with the measurement behind it. time: of the reading, ms UTC."""

    rule: str
    words: str
    signals: tuple[str, ...]
    value: float
    time: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Alert:
    """A decision worth a clinician's attention; one for a patient and rule at a time. Times in ms UTC.

    history: every stage it entered, and when, and by whom where a person did it.
    """

    patient: str
    rule: str
    priority: Priority
    stage: Stage
    reason: Reason
    history: tuple[tuple[Stage, int, str], ...]

    @property
    def open(self) -> bool:
        """Whether it still wants something."""
        return self.stage is not Stage.RESOLVED

    @property
    def raised(self) -> int:
        """When it was raised."""
        return self.history[0][1]


def raise_alert(patient: str, rule: str, priority: Priority, reason: Reason, *, now: int) -> Alert:
    """Return a new alert."""
    return Alert(
        patient=patient,
        rule=rule,
        priority=priority,
        stage=Stage.RAISED,
        reason=reason,
        history=((Stage.RAISED, now, ""),),
    )


def acknowledge(alert: Alert, *, by: str, now: int) -> Alert:
    """Return the alert in someone's hands. Acknowledging what is resolved or in hand already changes nothing."""
    if not by:
        raise ValueError("expected who acknowledges")
    if alert.stage in (Stage.RESOLVED, Stage.ACKNOWLEDGED):
        return alert
    return _enter(alert, Stage.ACKNOWLEDGED, now, by)


def escalate(alert: Alert, *, now: int) -> Alert:
    """Return the alert escalated where nobody took it in time (ESCALATE_AFTER), else as it is."""
    if alert.stage is Stage.RAISED and now - alert.raised >= ESCALATE_AFTER[alert.priority]:
        return _enter(alert, Stage.ESCALATED, now, "")
    return alert


def worsen(alert: Alert, priority: Priority, reason: Reason, *, now: int) -> Alert:
    """Return the alert with a new reason; a higher priority escalates it, also out of somebody's hands."""
    changed = replace(alert, reason=reason)
    if priority <= alert.priority or not alert.open:
        return changed
    changed = replace(changed, priority=priority)
    return changed if alert.stage is Stage.ESCALATED else _enter(changed, Stage.ESCALATED, now, "")


def resolve(alert: Alert, *, now: int, by: str = "") -> Alert:
    """Return the alert at its end: its cause is gone, or someone says so."""
    return alert if not alert.open else _enter(alert, Stage.RESOLVED, now, by)


def _enter(alert: Alert, stage: Stage, now: int, by: str) -> Alert:
    return replace(alert, stage=stage, history=(*alert.history, (stage, now, by)))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bundle:
    """What a patient's open alerts amount to: one line on the board, by the most urgent of them."""

    patient: str
    priority: Priority
    stage: Stage
    since: int
    alerts: tuple[Alert, ...]

    @property
    def words(self) -> str:
        """Every reason, the most urgent first."""
        return "; ".join(alert.reason.words for alert in self.alerts)


_URGENCY: Final = {Stage.ESCALATED: 2, Stage.RAISED: 1, Stage.ACKNOWLEDGED: 0, Stage.RESOLVED: -1}


def bundle(alerts: Iterable[Alert]) -> tuple[Bundle, ...]:
    """Return one bundle for each patient with open alerts, the most urgent first."""
    by_patient: dict[str, list[Alert]] = {}
    for alert in alerts:
        if alert.open:
            by_patient.setdefault(alert.patient, []).append(alert)
    bundles = []
    for patient, own in by_patient.items():
        ordered = sorted(own, key=lambda alert: (-alert.priority, -_URGENCY[alert.stage], alert.raised, alert.rule))
        bundles.append(
            Bundle(
                patient=patient,
                priority=ordered[0].priority,
                stage=max((alert.stage for alert in ordered), key=lambda stage: _URGENCY[stage]),
                since=min(alert.raised for alert in ordered),
                alerts=tuple(ordered),
            )
        )
    return tuple(sorted(bundles, key=lambda one: (-one.priority, -_URGENCY[one.stage], one.since, one.patient)))
