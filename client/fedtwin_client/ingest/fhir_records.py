"""What FHIR says besides observations, as records of the node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from fedtwin_client.ingest.codes import qualify_unit
from fedtwin_client.ingest.fhir_resources import (
    CodeableReference,
    Concept,
    Consent,
    MedicationAdministration,
    Patient,
    Period,
    Provision,
    Reference,
)
from fedtwin_client.ingest.fhir_values import patient_id, read_instant
from fedtwin_client.ingest.readings import NO_FAULT
from fedtwin_client.ingest.records import AdministrationRecord, ConsentRecord, PatientRecord

_PURPOSES: Final = 64  # more of them is no small record


def read_patient(one: Patient) -> PatientRecord:
    """Return who a patient is."""
    return PatientRecord(
        patient=one.id,
        identifiers=tuple((known.system, known.value) for known in one.identifier),
        sex=one.gender,
        born=one.birth_date,
        deceased=one.deceased_boolean or bool(one.deceased_date_time),
        active=one.active,
    )


def read_consent(one: Consent, aliases: Mapping[str, str]) -> ConsentRecord:
    """Return what was agreed."""
    provisions = one.provision if isinstance(one.provision, list) else [one.provision] if one.provision else []
    first = provisions[0] if provisions else Provision()
    period = one.period or first.period or Period()
    decisions: Mapping[str, Literal["permit", "deny"]] = {"permit": "permit", "deny": "deny"}
    policy = one.policy_rule.coding[0].code if one.policy_rule is not None and one.policy_rule.coding else ""
    return ConsentRecord(
        id=one.id,
        patient=patient_id(one.patient or one.subject, aliases),
        status=one.status,
        decision=decisions.get(one.decision or first.type, ""),
        policy=policy,
        purposes=tuple(purpose.code for purpose in first.purpose[:_PURPOSES]),
        given=one.date_time or one.date,
        start=period.start,
        end=period.end,
        nested=len(first.provision) + max(len(provisions) - 1, 0),
    )


def read_administration(one: MedicationAdministration, aliases: Mapping[str, str]) -> AdministrationRecord:
    """Return what was given, when."""
    own = one.medication or CodeableReference()
    concept = one.medication_codeable_concept or own.concept or Concept()
    reference = one.medication_reference or own.reference or Reference()
    period = one.effective_period or one.occurence_period or Period()
    instant = one.effective_date_time or one.occurence_date_time
    dose = one.dosage.dose if one.dosage is not None else None
    return AdministrationRecord(
        id=one.id,
        patient=patient_id(one.subject, aliases),
        status=one.status,
        medication=tuple((coding.system, coding.code) for coding in concept.coding),
        reference=reference.reference,
        start=_instant_or_none(instant or period.start),
        end=_instant_or_none(instant or period.end),
        dose=dose.value if dose is not None else None,
        unit=qualify_unit(dose.system, dose.code) if dose is not None else "",
    )


def _instant_or_none(text: str) -> int | None:
    time, fault = read_instant(text)
    return time if fault == NO_FAULT else None
