"""Alerts, boards and risks as FHIR R4 resources for the hospital's record system. Plain dictionaries, ready for JSON.

DetectedIssue one alert; Flag a patient's line on the board; RiskAssessment a probability with its method and age.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from fedtwin_client.monitoring.alerts import Alert, Bundle, Priority, Stage
from fedtwin_client.twins.patient_twin import VERSION
from fedtwin_shared.signal import SIGNALS

Resource = dict[str, Any]

_SEVERITY: Final = {Priority.HIGH: "high", Priority.MEDIUM: "moderate", Priority.LOW: "low"}
_ISSUE_STATUS: Final = {
    Stage.RAISED: "preliminary",
    Stage.ESCALATED: "preliminary",
    Stage.ACKNOWLEDGED: "final",
    Stage.RESOLVED: "cancelled",
}
_FLAG_CATEGORY: Final = "http://terminology.hl7.org/CodeSystem/flag-category"
_LOINC: Final = "http://loinc.org"


def write_detected_issue(alert: Alert) -> Resource:
    """Return one alert, with the codes of the signals behind it."""
    codings = [
        {"system": _LOINC, "code": SIGNALS[key].loinc, "display": SIGNALS[key].name}
        for key in alert.reason.signals
        if SIGNALS[key].loinc
    ]
    return {
        "resourceType": "DetectedIssue",
        "status": _ISSUE_STATUS[alert.stage],
        "code": {"text": alert.rule.replace("_", " ")},
        "severity": _SEVERITY[alert.priority],
        "patient": _refer(alert.patient),
        "identifiedDateTime": _stamp(alert.raised),
        "evidence": [{"code": [{"coding": codings, "text": alert.reason.words}]}],
        "detail": alert.reason.words,
        "mitigation": [
            {"action": {"text": str(stage)}, "date": _stamp(time), "author": {"display": by}}
            for stage, time, by in alert.history
            if by
        ],
    }


def write_flag(bundle: Bundle) -> Resource:
    """Return a patient's line on the board while it stands."""
    return {
        "resourceType": "Flag",
        "status": "active",
        "category": [{"coding": [{"system": _FLAG_CATEGORY, "code": "clinical"}]}],
        "code": {"text": bundle.words},
        "subject": _refer(bundle.patient),
        "period": {"start": _stamp(bundle.since)},
    }


def write_risk_assessment(
    patient: str, *, risk: float, outcome: str, hours: float, method: str, at: int, newest: int | None
) -> Resource:
    """Return a risk with what made it. newest: time of the newest reading it rests on; None: none, and it says so.

    Raises `ValueError` for what is no probability.
    """
    if not 0 <= risk <= 1:
        raise ValueError("expected a risk from 0 to 1")
    rests = "no reading" if newest is None else f"readings up to {_stamp(newest)}"
    return {
        "resourceType": "RiskAssessment",
        "status": "final",
        "subject": _refer(patient),
        "occurrenceDateTime": _stamp(at),
        "method": {"text": f"{method}, twin {VERSION}"},
        "prediction": [
            {
                "outcome": {"text": outcome},
                "probabilityDecimal": round(risk, 4),
                "whenPeriod": {"start": _stamp(at), "end": _stamp(at + round(hours * 3_600_000))},
            }
        ],
        "note": [{"text": f"rests on {rests}"}],
    }


def _refer(patient: str) -> Resource:
    return {"reference": f"Patient/{patient}"}


def _stamp(time: int) -> str:
    return datetime.fromtimestamp(time / 1000, UTC).isoformat(timespec="seconds")
