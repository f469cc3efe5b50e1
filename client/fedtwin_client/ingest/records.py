"""What the record system says besides observations: who a patient is, what was agreed, what was given.

Design note: these are what was sent, kept apart from what it means; a consent decides nothing here. Times are
milliseconds since 1970 UTC, None where nothing readable stands. No record of this module prints its contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AdmissionEvent:
    """An HL7 v2 ADT message: its event (`A01` …), the patient, and the id that a merge (`A40` …) retires."""

    event: str
    patient: str
    retired: str
    visit: str
    location: str
    sex: str
    born: str
    time: int | None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PatientRecord:
    """A FHIR Patient: its id, and (system, value) of every business identifier."""

    patient: str
    identifiers: tuple[tuple[str, str], ...]
    sex: str
    born: str
    deceased: bool
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ConsentRecord:
    """A FHIR Consent: R4's `provision.type` or R5's `decision`, and of its outermost provision period and purposes.

    decision: "" where the resource states none. policy: R4's `policyRule` code, such as `OPTIN`.
    nested: provisions inside the outermost one, exceptions that nothing here understands.
    """

    id: str
    patient: str
    status: str
    decision: Literal["permit", "deny", ""]
    policy: str
    purposes: tuple[str, ...]
    given: str
    start: str
    end: str
    nested: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AdministrationRecord:
    """A FHIR MedicationAdministration: (system, code) of what was given, when, and how much in which UCUM unit."""

    id: str
    patient: str
    status: str
    medication: tuple[tuple[str, str], ...]
    reference: str
    start: int | None
    end: int | None
    dose: float | None
    unit: str


Record = AdmissionEvent | PatientRecord | ConsentRecord | AdministrationRecord
