"""The elements of FHIR R4 and R5 that we use, typed; whatever else a resource carries is passed over.

Sources: HL7 FHIR 4.0.1 and 5.0.0: Observation, Patient, Consent, MedicationAdministration, Bundle, datatypes.
"""

from __future__ import annotations

import msgspec


class Coding(msgspec.Struct, gc=False):
    """Coding."""

    system: str = ""
    code: str = ""


class Concept(msgspec.Struct, gc=False):
    """CodeableConcept."""

    coding: list[Coding] = []


class Reference(msgspec.Struct, gc=False):
    """Reference."""

    reference: str = ""


class CodeableReference(msgspec.Struct, gc=False):
    """CodeableReference (R5)."""

    concept: Concept | None = None
    reference: Reference | None = None


class Quantity(msgspec.Struct, gc=False):
    """Quantity."""

    value: float | None = None
    comparator: str = ""
    system: str = ""
    code: str = ""


class Period(msgspec.Struct, gc=False):
    """Period."""

    start: str = ""
    end: str = ""


class Component(msgspec.Struct, gc=False, rename="camel"):
    """Observation.component."""

    code: Concept
    value_quantity: Quantity | None = None
    modifier_extension: msgspec.Raw = msgspec.Raw()


class Observation(msgspec.Struct, gc=False, rename="camel", tag="Observation", tag_field="resourceType"):
    """Observation."""

    status: str
    code: Concept
    subject: Reference | None = None
    effective_date_time: str = ""
    effective_instant: str = ""
    effective_period: Period | None = None
    value_quantity: Quantity | None = None
    component: list[Component] = []
    modifier_extension: msgspec.Raw = msgspec.Raw()


class Identifier(msgspec.Struct, gc=False):
    """Identifier."""

    system: str = ""
    value: str = ""


class Patient(msgspec.Struct, gc=False, rename="camel", tag="Patient", tag_field="resourceType"):
    """Patient."""

    id: str = ""
    identifier: list[Identifier] = []
    gender: str = ""
    birth_date: str = ""
    active: bool = True
    deceased_boolean: bool = False
    deceased_date_time: str = ""


class Provision(msgspec.Struct, gc=False):
    """Consent.provision."""

    type: str = ""
    period: Period | None = None
    purpose: list[Coding] = []
    provision: list[msgspec.Raw] = []


class Consent(msgspec.Struct, gc=False, rename="camel", tag="Consent", tag_field="resourceType"):
    """Consent; `patient`, `dateTime`, `policyRule` and one `provision` in R4, `subject`, `date`, `decision` in R5."""

    status: str
    id: str = ""
    patient: Reference | None = None
    subject: Reference | None = None
    date_time: str = ""
    date: str = ""
    decision: str = ""
    period: Period | None = None
    policy_rule: Concept | None = None
    provision: Provision | list[Provision] | None = None


class Dosage(msgspec.Struct, gc=False):
    """MedicationAdministration.dosage."""

    dose: Quantity | None = None


class MedicationAdministration(
    msgspec.Struct, gc=False, rename="camel", tag="MedicationAdministration", tag_field="resourceType"
):
    """MedicationAdministration; R5 renames `effective` to `occurence` (so spelt)."""

    status: str
    id: str = ""
    subject: Reference | None = None
    medication_codeable_concept: Concept | None = None
    medication_reference: Reference | None = None
    medication: CodeableReference | None = None
    effective_date_time: str = ""
    effective_period: Period | None = None
    occurence_date_time: str = ""
    occurence_period: Period | None = None
    dosage: Dosage | None = None


Resource = Observation | Patient | Consent | MedicationAdministration


class Entry(msgspec.Struct, gc=False, rename="camel"):
    """Bundle.entry with a resource that we use."""

    full_url: str = ""
    resource: Resource | None = None


class Bundle(msgspec.Struct, tag="Bundle", tag_field="resourceType"):
    """Bundle of nothing but resources that we use, which is read at once."""

    entry: list[Entry] = []


class RawEntry(msgspec.Struct, rename="camel"):
    """Bundle.entry with any resource."""

    full_url: str = ""
    resource: msgspec.Raw = msgspec.Raw()


class RawBundle(msgspec.Struct, tag="Bundle", tag_field="resourceType"):
    """Bundle of any resources."""

    entry: list[RawEntry] = []


class AnyResource(msgspec.Struct, rename="camel"):
    """A resource of which only the type is known."""

    resource_type: str
