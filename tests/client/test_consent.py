"""Consent: what FHIR says is understood or is a refusal, and the rule over all that was said."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.consent import OWN, Decision, is_admitted, understand
from fedtwin_client.ingest.fhir import read_message
from fedtwin_client.ingest.readings import Draft
from fedtwin_client.ingest.records import ConsentRecord

NOW = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp() * 1000)


def fhir(**changes: Any) -> ConsentRecord:
    """Return what ingest reads of an R4 consent to research, some of it changed; None takes a field away."""
    resource = {
        "resourceType": "Consent",
        "id": "c1",
        "status": "active",
        "patient": {"reference": "Patient/p1"},
        "dateTime": "2026-01-01",
        "provision": {"type": "permit", "period": {"start": "2026-01-01", "end": "2027-01-01"}},
    } | changes
    resource = {name: value for name, value in resource.items() if value is not None}
    (record,) = read_message(json.dumps(resource).encode(), Draft()).records
    assert isinstance(record, ConsentRecord)
    return record


def provision(**fields: Any) -> dict[str, Any]:
    return {"provision": fields}


def purpose(*codes: str) -> list[dict[str, str]]:
    return [{"code": code} for code in codes]


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("permission", {}, "permit"),
    ("for research", provision(type="permit", purpose=purpose("HRESCH", "TREAT")), "permit"),
    ("for treatment alone", provision(type="permit", purpose=purpose("TREAT")), "none"),
    ("with an exception inside", provision(type="permit", provision=[{"type": "deny"}]), "deny"),
    ("its end unreadable", provision(type="permit", period={"end": "next year"}), "deny"),
    ("not begun", provision(type="permit", period={"start": "2026-06-02"}), "none"),
    ("over", provision(type="permit", period={"end": "2026-05-31"}), "none"),
    ("its last day", provision(type="permit", period={"end": "2026-06-01"}), "permit"),
    ("its last month", provision(type="permit", period={"end": "2026-06"}), "permit"),
    ("its last year", provision(type="permit", period={"end": "2026"}), "permit"),
    ("refusal", provision(type="deny"), "deny"),
    ("refusal of research", provision(type="deny", purpose=purpose("HRESCH")), "deny"),
    ("refusal of advertising alone", provision(type="deny", purpose=purpose("HMARKT")), "none"),
    ("refusal of something unknown", provision(type="deny", purpose=purpose("XYZ")), "deny"),
    ("refusal that is over", provision(type="deny", period={"end": "2026-05-31"}), "none"),
    ("refusal, its end unreadable", provision(type="deny", period={"end": "soon"}), "deny"),
    ("rejected", {"status": "rejected"}, "deny"),
    ("draft", {"status": "draft"}, "none"),
    ("entered in error", {"status": "entered-in-error"}, "none"),
    ("a status nobody knows", {"status": "maybe"}, "deny"),
    ("by policy", {"provision": None, "policyRule": {"coding": [{"code": "OPTIN"}]}}, "permit"),
    ("against by policy", {"provision": None, "policyRule": {"coding": [{"code": "OPTOUT"}]}}, "deny"),
    ("no decision", {"provision": None}, "deny"),
    ("R5 permission", {"patient": None, "subject": {"reference": "Patient/p1"}, "decision": "permit"}, "permit"),
    ("R5 refusal", {"provision": None, "decision": "deny"}, "deny"),
]


@pytest.mark.parametrize(("changes", "outcome"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_consent_of_fhir_is_understood_or_is_a_refusal(changes: dict[str, Any], outcome: str) -> None:
    decision = understand(fhir(**changes))
    said = decision.outcome if decision.holds(NOW) else "none"
    assert said == outcome
    assert is_admitted([decision], "opt-out", at=NOW) is (outcome != "deny")
    assert is_admitted([decision], "opt-in", at=NOW) is (outcome == "permit")


def test_who_said_nothing_is_in_by_opt_out_and_out_by_opt_in() -> None:
    assert is_admitted([], "opt-out", at=NOW)
    assert not is_admitted([], "opt-in", at=NOW)


SAID = st.lists(
    st.builds(
        Decision,
        source=st.sampled_from(["a", "b", OWN]),
        outcome=st.sampled_from(["permit", "deny", "none"]),
        since=st.one_of(st.none(), st.integers(0, 4)),
        until=st.one_of(st.none(), st.integers(0, 4)),
    ),
    max_size=6,
)


@given(SAID, st.sampled_from(["opt-in", "opt-out"]), st.integers(0, 4))
def test_a_refusal_outweighs_everything_and_only_its_own_source_takes_it_back(
    said: list[Decision], rule: Any, at: int
) -> None:
    refusal = Decision(source="refusing", outcome="deny")
    for place in range(len(said) + 1):
        assert not is_admitted([*said[:place], refusal, *said[place:]], rule, at=at)
    renewed = [*said, refusal, Decision(source="refusing", outcome="permit")]
    assert is_admitted(renewed, rule, at=at) or any(one.outcome == "deny" for one in said)


@given(SAID, st.integers(0, 4))
def test_opt_in_admits_nobody_whom_opt_out_does_not(said: list[Decision], at: int) -> None:
    assert not is_admitted(said, "opt-in", at=at) or is_admitted(said, "opt-out", at=at)
