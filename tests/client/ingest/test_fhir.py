"""FHIR R4 and R5: what is read agrees with the reference models, and nothing is lost on the way."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fhir.resources.consent import Consent as ConsentR5
from fhir.resources.R4B.observation import Observation as ObservationR4
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest import fhir, fhir_values
from fedtwin_client.ingest.document import Document
from fedtwin_client.ingest.fhir import MAXIMUM_BYTES, read_message, read_ndjson
from fedtwin_client.ingest.fhir_values import read_instant
from fedtwin_client.ingest.readings import NO_FAULT, Draft
from fedtwin_client.ingest.records import AdministrationRecord, ConsentRecord, PatientRecord
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.quarantine import Reason
from tests.client.ingest.foreign import DATA, INPUTS, judge, needs_data

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"


def quantity(value: float, code: str, **more: Any) -> dict[str, Any]:
    return {"value": value, "system": UCUM, "code": code, **more}


def observation(loinc: str = "8867-4", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": loinc}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2026-11-22T12:00:00+01:00",
        "valueQuantity": quantity(81, "/min"),
        **more,
    }


def read(resource: Any) -> tuple[Document, Draft]:
    draft = Draft()
    return read_message(json.dumps(resource).encode(), draft), draft


def test_an_observation_becomes_one() -> None:
    document, draft = read(observation())
    batch = judge(draft.readings()).batch
    assert document.rows == 1
    assert (batch.patients, batch.value.tolist(), batch.time.tolist()) == (("p1",), [81.0], [1795345200000])
    assert SIGNAL_KEYS[int(batch.signal[0])] == "heart_rate"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "entered-in-error"}, Reason.WITHDRAWN),
        ({"status": "cancelled"}, Reason.WITHDRAWN),
        ({"modifierExtension": [{"url": "x", "valueBoolean": True}]}, Reason.MODIFIED),
        ({"subject": None}, Reason.PATIENT_MISSING),
        ({"subject": {"reference": "https://elsewhere.example/Patient/p1"}}, Reason.PATIENT_MISSING),
        ({"subject": {"reference": "Group/p1"}}, Reason.PATIENT_MISSING),
        ({"effectiveDateTime": "2026-11-22"}, Reason.TIME_WITHOUT_ZONE),
        ({"effectiveDateTime": "2026-11-22T12:00:00"}, Reason.TIME_WITHOUT_ZONE),
        ({"effectiveDateTime": "yesterday"}, Reason.TIME_UNREADABLE),
        ({"code": {"text": "Heart rate"}}, Reason.UNKNOWN_SIGNAL),
        ({"valueQuantity": quantity(81, "bpm")}, Reason.UNKNOWN_UNIT),
        ({"valueQuantity": {"value": 81, "unit": "/min"}}, Reason.UNKNOWN_UNIT),
        ({"valueQuantity": quantity(81, "/min", comparator="<")}, Reason.NOT_A_NUMBER),
        ({"valueQuantity": quantity(8100, "/min")}, Reason.IMPLAUSIBLE),
        ({"valueQuantity": {"value": "81"}}, Reason.MALFORMED),
        ({"status": 3}, Reason.MALFORMED),
        ({"resourceType": "Encounter"}, Reason.NOT_USED),
    ],
)
def test_what_is_no_observation_has_a_reason(changes: dict[str, Any], reason: Reason) -> None:
    document, draft = read(observation(**changes))
    assert document.rows == 1
    assert judge(draft.readings()).set_aside.counts() == {reason: 1}


def test_components_are_rows_of_their_own() -> None:
    panel = observation("85354-9", component=[])
    del panel["valueQuantity"]
    for code, value in (("8480-6", 120), ("8478-0", 90), ("8462-4", 75)):
        concept = {"coding": [{"system": LOINC, "code": code}]}
        panel["component"].append({"code": concept, "valueQuantity": quantity(value, "mm[Hg]")})
    document, draft = read(panel)
    judged = judge(draft.readings())
    assert document.rows == 3
    assert judged.batch.value.tolist() == [120, 90]
    assert judged.set_aside.counts() == {Reason.UNKNOWN_SIGNAL: 1}  # the table has no diastolic pressure of any method


def test_a_bundle_resolves_its_references_and_accounts_for_every_entry() -> None:
    patient = {"resourceType": "Patient", "id": "p7", "gender": "female", "birthDate": "1960-01-01"}
    entries = [
        {"fullUrl": "urn:uuid:a", "resource": patient},
        {"resource": observation(subject={"reference": "urn:uuid:a"})},
        {"resource": observation(status=7)},
        {"resource": {"resourceType": "Claim"}},
        {"request": {"method": "DELETE", "url": "Observation/1"}},
    ]
    document, draft = read({"resourceType": "Bundle", "type": "transaction", "entry": entries})
    judged = judge(draft.readings())
    assert document.rows + len(document.records) == len(entries)
    assert judged.batch.patients == ("p7",)
    assert judged.set_aside.counts() == {Reason.MALFORMED: 1, Reason.NOT_USED: 2}
    assert [record.patient for record in document.records] == ["p7"]
    assert "p7" not in repr(document)


def test_lines_stand_by_themselves() -> None:
    draft = Draft()
    line = json.dumps(observation()).encode()
    document = read_ndjson(b"\n".join([line, b"", b"{", line, b'{"resourceType":"Group"}', b""]), draft)
    judged = judge(draft.readings())
    assert document.rows == 4
    assert len(judged.batch) == 2
    assert judged.set_aside.counts() == {Reason.MALFORMED: 1, Reason.NOT_USED: 1}


def test_a_message_that_cannot_be_read_is_refused_and_leaves_nothing() -> None:
    for data in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"{}", b" " * (MAXIMUM_BYTES + 1)):
        draft = Draft()
        document = read_message(data, draft)
        assert document.refused
        assert len(draft) == 0


def test_consents_of_both_versions_are_kept_as_they_were_said() -> None:
    older = {
        "resourceType": "Consent",
        "id": "c1",
        "status": "active",
        "patient": {"reference": "Patient/p1"},
        "dateTime": "2026-01-01",
        "policyRule": {"coding": [{"code": "OPTIN"}]},
        "provision": {
            "type": "permit",
            "period": {"start": "2026-01-01", "end": "2027-01-01"},
            "purpose": [{"code": "HRESCH"}],
            "provision": [{"type": "deny"}],
        },
    }
    newer = {
        "resourceType": "Consent",
        "id": "c2",
        "status": "active",
        "subject": {"reference": "Patient/p1"},
        "date": "2026-01-01",
        "decision": "deny",
        "period": {"start": "2026-01-01"},
        "provision": [{"purpose": [{"system": "urn:x", "code": "TREAT"}]}],
    }
    ConsentR5.model_validate(newer)  # the reference agrees that this is R5
    (first,), (second,) = read(older)[0].records, read(newer)[0].records
    assert isinstance(first, ConsentRecord)
    assert isinstance(second, ConsentRecord)
    assert (first.decision, first.policy, first.purposes, first.nested) == ("permit", "OPTIN", ("HRESCH",), 1)
    assert (first.patient, first.given, first.start, first.end) == ("p1", "2026-01-01", "2026-01-01", "2027-01-01")
    assert (second.decision, second.purposes, second.start, second.end) == ("deny", ("TREAT",), "2026-01-01", "")


def test_administrations_of_both_versions_are_read() -> None:
    concept = {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": "5856"}]}
    common = {
        "resourceType": "MedicationAdministration",
        "status": "completed",
        "subject": {"reference": "Patient/p1"},
        "dosage": {"dose": quantity(4, "[IU]")},
    }
    older = {**common, "medicationCodeableConcept": concept, "effectiveDateTime": "2026-11-22T12:00:00Z"}
    newer = {**common, "medication": {"concept": concept}, "occurencePeriod": {"start": "2026-11-22T12:00:00Z"}}
    (first,), (second,) = read(older)[0].records, read(newer)[0].records
    for one in (first, second):
        assert isinstance(one, AdministrationRecord)
        assert (one.dose, one.unit, one.start) == (4, "[IU]", 1795348800000)
        assert one.medication[0][1] == "5856"


def load_bundles() -> Iterator[tuple[str, bytes]]:
    for path in sorted((DATA / "fhir_synthea_r4" / "bundles").glob("*.gz")):
        yield path.name, gzip.decompress(path.read_bytes())


@needs_data
def test_foreign_resources_are_read_or_refused_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    files = [(path.name, path.read_bytes()) for path in sorted((DATA / "fhir_r4_hl7_test_cases").glob("*.json"))]
    table: list[str] = []
    for name, data in [*files, *load_bundles()]:
        draft, raw = Draft(), json.loads(data)
        document = read_message(data, draft)
        judged = judge(draft.readings())
        assert not document.refused
        assert document.rows + len(document.records) == count_entries(raw), name
        why = ", ".join(f"{reason} {number}" for reason, number in judged.set_aside.counts().items())
        table.append(
            f"{name:<40} accepted {len(judged.batch):>5} records {len(document.records):>4} of {document.rows:>6} {why}"
        )
    with capsys.disabled():
        print("", *table, sep="\n")


def count_entries(raw: dict[str, Any]) -> int:
    """Count what a resource holds, by the rule of the module and none of its code."""
    if raw["resourceType"] == "Bundle":
        return sum(count_entries(entry["resource"]) for entry in raw["entry"])
    if raw["resourceType"] != "Observation":
        return 1
    parts = len(raw.get("component", []))
    return parts + 1 if "valueQuantity" in raw or not parts else parts


@needs_data
def test_values_agree_with_the_reference_models() -> None:
    compared = 0
    for _, data in load_bundles():
        for entry in json.loads(data)["entry"]:
            resource = entry["resource"]
            if resource["resourceType"] != "Observation" or "valueQuantity" not in resource:
                continue
            theirs: Any = ObservationR4.model_validate(resource)
            _, draft = read(resource)
            patient, (code, unit), time, value, *_ = draft.rows[0]
            assert draft.rows[0][6] == NO_FAULT
            assert time == round(theirs.effectiveDateTime.timestamp() * 1000)
            assert value == float(theirs.valueQuantity.value)
            assert unit == theirs.valueQuantity.code
            assert code == theirs.code.coding[0].code
            assert theirs.subject.reference.endswith(patient)
            compared += 1
            if compared == 300:
                return
    raise AssertionError("expected 300 observations with a quantity")


def test_instants() -> None:
    assert read_instant("2026-11-22T12:00:00.123Z") == (1795348800123, NO_FAULT)
    for text in ("", "2026", "2026-11", "20261122T120000Z", "2026-W47-1T12:00:00Z", "2026-11-22T25:00:00Z", "ü" * 30):
        assert read_instant(text)[1] != NO_FAULT, text


KINDS = ["Observation", "Patient", "Consent", "MedicationAdministration", "Bundle", "Basic"]
FIELDS = ["status", "code", "subject", "effectiveDateTime", "valueQuantity", "component", "entry", "provision", "id"]
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(KINDS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from([*FIELDS, "coding", "system", "value", "resource"]), inner, max_size=3),
    ),
    max_leaves=8,
)


def check_total(data: bytes) -> None:
    """Read anything: it is read or refused, and no row of it is lost."""
    for reader in (read_message, read_ndjson):
        draft = Draft()
        document = reader(data, draft)
        assert document.rows == len(draft)
        assert not (document.refused and (len(draft) or document.records))
        assert all(isinstance(one, PatientRecord | ConsentRecord | AdministrationRecord) for one in document.records)
        judge(draft.readings())


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_crashes_it(data: st.DataObject) -> None:
    kind = data.draw(st.integers(0, 2))
    if kind == 0:
        check_total(data.draw(st.binary(max_size=100)))
    elif kind == 1:
        changes = data.draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
        resource = {**observation(), **changes, "resourceType": data.draw(st.sampled_from(KINDS))}
        check_total(json.dumps(resource).encode())
    else:
        base = json.dumps({"resourceType": "Bundle", "entry": [{"resource": observation()}]}).encode()
        start, length = data.draw(st.integers(0, len(base))), data.draw(st.integers(0, 20))
        check_total(base[:start] + data.draw(st.binary(max_size=8)) + base[start + length :])


INSTANTS = st.builds(
    lambda text, at, other: text[:at] + other + text[at + len(other) :],
    st.sampled_from(
        ["2018-11-13T17:59:02-05:00", "2018-11-13T17:59:59Z", "2018-11-13T17:59:02.125Z", "2018-W46-2T17:59Z"]
    ),
    st.integers(0, 26),
    st.text("0123456789:-+.TZ", max_size=3),
)


@given(text=INSTANTS)
def test_the_quick_way_to_read_an_instant_is_the_slow_one(text: str) -> None:
    assert read_instant(text) == fhir_values._read_whole(text)


def test_a_large_message_leaves_nothing_of_its_codes_behind() -> None:
    coding = [{"system": "http://loinc.org", "code": "x" * 30_000}]
    read_message(json.dumps(observation(code={"coding": coding})).encode(), Draft())
    assert fhir._qualify.cache_info().currsize == 0
