"""What leaves for the record system is what an independent FHIR reader takes, and cards are the specification's."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from fhir.resources.R4B.detectedissue import DetectedIssue
from fhir.resources.R4B.flag import Flag
from fhir.resources.R4B.riskassessment import RiskAssessment
from pydantic import BaseModel

from fedtwin_client.monitoring.alerts import Priority, acknowledge, bundle, escalate, raise_alert, resolve
from fedtwin_client.monitoring.cds_hooks import SUMMARY, answer_order_select, answer_patient_view, list_services
from fedtwin_client.monitoring.fhir_output import write_detected_issue, write_flag, write_risk_assessment
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import make_batch
from fedtwin_client.twins.patient_twin import PatientTwin
from fedtwin_client.twins.twins import Twins
from fedtwin_shared.errors import FedtwinError
from tests.client.monitoring.examples import MINUTE, REASON

NOW = 1_700_000_000_000


def read(kind: type[BaseModel], resource: dict[str, Any]) -> dict[str, Any]:
    """The resource as an independent reader understands it; it raises where that is no such resource."""
    found: dict[str, Any] = json.loads(kind.model_validate(resource).model_dump_json(exclude_none=True))
    return found


def test_an_alert_is_a_detected_issue_at_every_stage() -> None:
    raised = raise_alert("p-1", "hypoxia", Priority.HIGH, REASON, now=NOW)
    stages = [raised, escalate(raised, now=NOW + 10 * MINUTE), acknowledge(raised, by="nurse", now=NOW + MINUTE)]
    stages.append(resolve(stages[-1], now=NOW + 60 * MINUTE))
    issues = [read(DetectedIssue, write_detected_issue(alert)) for alert in stages]
    assert [issue["status"] for issue in issues] == ["preliminary", "preliminary", "final", "cancelled"]
    assert {issue["severity"] for issue in issues} == {"high"}
    assert issues[0]["patient"]["reference"] == "Patient/p-1"
    assert issues[0]["evidence"][0]["code"][0]["coding"][0]["code"] == "59408-5"
    assert datetime.fromisoformat(issues[0]["identifiedDateTime"]).timestamp() * 1000 == NOW
    assert issues[2]["mitigation"][0]["author"]["display"] == "nurse"


def test_a_line_on_the_board_is_a_flag_and_a_risk_says_what_it_rests_on() -> None:
    (line,) = bundle([raise_alert("p-1", "hypoxia", Priority.HIGH, REASON, now=NOW)])
    flag = read(Flag, write_flag(line))
    assert (flag["status"], flag["code"]["text"]) == ("active", REASON.words)
    risk: dict[str, Any] = {"outcome": "deterioration", "hours": 24.0, "method": "release 3", "at": NOW}
    found = read(RiskAssessment, write_risk_assessment("p-1", risk=0.25, newest=NOW - MINUTE, **risk))
    (prediction,) = found["prediction"]
    assert float(prediction["probabilityDecimal"]) == 0.25
    begin, end = (datetime.fromisoformat(prediction["whenPeriod"][key]) for key in ("start", "end"))
    assert (end - begin).total_seconds() == 24 * 3600
    assert "readings up to 2023-11-14T22:12:20" in found["note"][0]["text"]
    assert "no reading" in write_risk_assessment("p-1", risk=0.25, newest=None, **risk)["note"][0]["text"]
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="0 to 1"):
            write_risk_assessment("p-1", risk=wrong, newest=None, **risk)


def view(hook: str, **context: object) -> dict[str, object]:
    return {"hook": hook, "hookInstance": "d1577c69", "context": {"userId": "Practitioner/1", **context}}


def test_opening_a_patient_shows_the_alerts() -> None:
    (line,) = bundle([raise_alert("p-1", "hypoxia", Priority.HIGH, REASON, now=NOW)])
    (card,) = answer_patient_view(view("patient-view", patientId="p-1"), {"p-1": line})["cards"]
    assert card["indicator"] == "critical"
    assert card["summary"] == REASON.words
    assert card["source"]["label"]
    assert answer_patient_view(view("patient-view", patientId="p-2"), {"p-1": line}) == {"cards": []}
    for request in (view("patient-view"), view("order-select", patientId="p-1"), {"hook": "patient-view"}):
        with pytest.raises(FedtwinError, match="patient"):
            answer_patient_view(request, {"p-1": line})
    assert {service["hook"] for service in list_services()["services"]} == {"patient-view", "order-select"}


@pytest.fixture(scope="module")
def twin() -> PatientTwin:
    twins = Twins()
    count = 40
    twins.receive(
        make_batch(
            patients=["p-1"],
            devices=["sensor"],
            patient=[0] * count,
            signal=[SIGNAL_KEYS.index("interstitial_glucose")] * count,
            time=[NOW + (at - count) * 5 * MINUTE for at in range(count)],
            value=[180.0 + at % 5 for at in range(count)],
            device=[0] * count,
            sequence=range(count),
            quality=[0] * count,
        ),
        now=NOW,
    )
    return twins.twin("p-1")


def order(code: str = "A10AB01", unit: str = "[iU]", name: str = "order-1") -> dict[str, object]:
    resource = {
        "resourceType": "MedicationRequest",
        "id": name,
        "medicationCodeableConcept": {"coding": [{"system": "http://www.whocc.no/atc", "code": code}]},
        "dosageInstruction": [{"doseAndRate": [{"doseQuantity": {"value": 6, "code": unit}}]}],
    }
    return {"draftOrders": {"entry": [{"resource": resource}]}, "selections": ["MedicationRequest/order-1"]}


def test_selecting_insulin_shows_what_is_expected_and_how_far_to_believe_it(twin: PatientTwin) -> None:
    request = view("order-select", patientId="p-1", **order())
    (card,) = answer_order_select(request, {"p-1": twin}, now=NOW)["cards"]
    assert card["summary"].startswith("6 units of rapid insulin")
    assert "not validated" in card["summary"]
    assert "90 % interval" in card["detail"]
    assert "newest reading 5 minutes old" in card["detail"]
    assert len(card["summary"]) < SUMMARY
    for other in (order(code="A10AE04"), order(unit="mg"), order(name="order-2")):
        request = view("order-select", patientId="p-1", **other)
        assert answer_order_select(request, {"p-1": twin}, now=NOW) == {"cards": []}
    assert answer_order_select(view("order-select", patientId="p-9", **order()), {"p-1": twin}, now=NOW) == {
        "cards": []
    }
