"""CDS Hooks 2.0: what a clinician sees in the record system when a patient is opened or insulin is about to be ordered.

patient-view   a card for the patient's line on the board
order-select   a card with what the twin expects of a rapid insulin dose, with its interval and its badge
Specification: HL7 CDS Hooks 2.0, https://cds-hooks.hl7.org/2.0. A card is advice: it orders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedtwin_client.monitoring.alerts import Bundle, Priority
from fedtwin_client.twins.patient_twin import Badge, Intervention, PatientTwin
from fedtwin_shared.errors import FedtwinError

SUMMARY: Final = 140  # characters: the specification's limit
RAPID_INSULIN: Final = "A10AB"  # ATC: insulins and analogues for injection, fast-acting
ATC: Final = "http://www.whocc.no/atc"
UNITS: Final = frozenset({"[iU]", "[IU]", "U"})
MINUTES: Final = (0, 60, 120, 180)
_INDICATOR: Final = {Priority.HIGH: "critical", Priority.MEDIUM: "warning", Priority.LOW: "info"}
_SOURCE: Final = {"label": "fedtwin patient twin"}

Card = dict[str, Any]


def list_services() -> dict[str, list[dict[str, str]]]:
    """Return the answer to discovery."""
    return {
        "services": [
            {
                "hook": "patient-view",
                "id": "fedtwin-alerts",
                "title": "Alerts of the patient twin",
                "description": "Open alerts of the patient with their reasons.",
            },
            {
                "hook": "order-select",
                "id": "fedtwin-insulin",
                "title": "Expected glucose after rapid insulin",
                "description": "What the patient twin expects of the dose, with interval and badge.",
            },
        ]
    }


def answer_patient_view(request: Mapping[str, Any], bundles: Mapping[str, Bundle]) -> dict[str, list[Card]]:
    """Return a card where the patient has open alerts. Raises `FedtwinError` for a request without a patient."""
    patient = _patient_of(request, "patient-view")
    found = bundles.get(patient)
    if found is None:
        return {"cards": []}
    detail = "\n".join(f"- {alert.reason.words} ({alert.stage})" for alert in found.alerts)
    return {"cards": [_card(found.words, _INDICATOR[found.priority], detail)]}


def answer_order_select(
    request: Mapping[str, Any], twins: Mapping[str, PatientTwin], *, now: int
) -> dict[str, list[Card]]:
    """Return a card for each selected order of rapid insulin. Raises `FedtwinError` for a request without a patient."""
    twin = twins.get(_patient_of(request, "order-select"))
    if twin is None:
        return {"cards": []}
    return {"cards": [_foresee(twin, units, now) for units in _insulin_of(request["context"])]}


def _foresee(twin: PatientTwin, units: float, now: int) -> Card:
    dose = Intervention(kind="insulin", amount=units, time=now)
    found = twin.simulate([dose], now=now, minutes=MINUTES)
    last, without = found.done[-1], found.undone[-1]
    summary = f"{units:g} units of rapid insulin: glucose {last.middle:.0f} mg/dL in 3 hours ({found.badge})"
    age = "no reading yet" if last.age is None else f"newest reading {last.age / 60_000:.0f} minutes old"
    lines = [
        f"- in {minutes} minutes: {one.middle:.0f} mg/dL (90 % interval {one.low:.0f} to {one.high:.0f})"
        for minutes, one in zip(MINUTES, found.done, strict=True)
    ]
    lines += [
        f"- without it, in 3 hours: {without.middle:.0f} mg/dL",
        f"- {age}",
        *(f"- {why}" for why in found.reasons),
    ]
    low = found.badge is not Badge.OUTSIDE and min(one.low for one in found.done) < 70
    return _card(summary, "warning" if low else "info", "\n".join(lines))


def _card(summary: str, indicator: str, detail: str) -> Card:
    short = summary if len(summary) < SUMMARY else summary[: SUMMARY - 2] + "…"
    return {"summary": short, "indicator": indicator, "detail": detail, "source": _SOURCE}


def _patient_of(request: Mapping[str, Any], hook: str) -> str:
    context = request.get("context")
    patient = context.get("patientId") if isinstance(context, Mapping) else None
    if request.get("hook") != hook or not isinstance(patient, str) or not patient:
        raise FedtwinError(field="hook", expected=f"a {hook} request with a patient", found="something else")
    return patient


def _insulin_of(context: Mapping[str, Any]) -> list[float]:
    """Units of every selected order of rapid insulin; what is written otherwise is passed over."""
    selected = {str(name).split("/")[-1] for name in context.get("selections", ())}
    found = []
    for entry in context.get("draftOrders", {}).get("entry", ()):
        order = entry.get("resource", {})
        codings = order.get("medicationCodeableConcept", {}).get("coding", ())
        rapid = any(c.get("system") == ATC and str(c.get("code")).startswith(RAPID_INSULIN) for c in codings)
        if order.get("resourceType") != "MedicationRequest" or order.get("id") not in selected or not rapid:
            continue
        for dosage in order.get("dosageInstruction", ()):
            for rate in dosage.get("doseAndRate", ()):
                quantity = rate.get("doseQuantity", {})
                value = quantity.get("value")
                if quantity.get("code") in UNITS and isinstance(value, int | float) and value > 0:
                    found.append(float(value))
    return found
