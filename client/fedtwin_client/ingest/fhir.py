"""FHIR R4 and R5 in JSON: Observation, Patient, Consent, MedicationAdministration, alone, in a Bundle or as NDJSON.

Design note: only the elements that we use are typed; a resource that carries them in another shape is set aside as
malformed, one of another type as not used. An Observation is a row for its value and one for each component. Memory: a
message of n bytes, n <= `MAXIMUM_BYTES`, takes at most `MEMORY_FACTOR` · n while it is read.
Sources: HL7 FHIR 4.0.1 and 5.0.0: Observation, Consent, MedicationAdministration, Bundle (§2.36.4, resolving
references), datatypes (dateTime, Quantity), extensibility (§2.5.0.2, modifier extensions).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal

import msgspec

from fedtwin_client.ingest.codes import SIGNAL_OF_CODE, qualify_code, qualify_unit
from fedtwin_client.ingest.document import TOO_LARGE, UNREADABLE, Document
from fedtwin_client.ingest.readings import DOUBTFUL, FAULT, NO_FAULT, NO_TIME, SOUND, Draft
from fedtwin_client.ingest.records import AdministrationRecord, ConsentRecord, PatientRecord, Record
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason

MAXIMUM_BYTES: Final = 1 << 23  # what is larger comes as NDJSON, in parts
MEMORY_FACTOR: Final = 120

_ACCEPTED_STATUS: Final = {"final": SOUND, "amended": SOUND, "corrected": SOUND, "preliminary": DOUBTFUL}
_PURPOSES: Final = 64  # more of them is no small record
_NAN: Final = float("nan")


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


_WHOLE: Final[msgspec.json.Decoder[Resource | Bundle]] = msgspec.json.Decoder(Resource | Bundle)
_RESOURCE: Final[msgspec.json.Decoder[Resource]] = msgspec.json.Decoder(Resource)
_RAW_BUNDLE = msgspec.json.Decoder(RawBundle)
_ANY = msgspec.json.Decoder(AnyResource)
_USED: Final = frozenset({"Observation", "Patient", "Consent", "MedicationAdministration"})
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_message(data: bytes, draft: Draft) -> Document:
    """Read one resource or a Bundle, append its rows to `draft`, and return the rest. Never raises.

    - each entry of a Bundle is a row, several, a record, or a row that says why it is none
    """
    if len(data) > MAXIMUM_BYTES:
        return TOO_LARGE
    with _forgetting(data):
        return _read(data, draft)


def _read(data: bytes, draft: Draft) -> Document:
    try:
        found: Resource | Bundle = _WHOLE.decode(data)
    except _UNREADABLE:
        return _read_mixed(data, draft)
    begin = len(draft.rows)
    if not isinstance(found, Bundle):
        record = _take(found, draft, {})
        return Document(rows=len(draft.rows) - begin, records=() if record is None else (record,))
    return _read_entries([(entry.full_url, entry.resource) for entry in found.entry], draft)


def read_ndjson(data: bytes, draft: Draft) -> Document:
    """Read one resource per line (FHIR Bulk Data Access 2.0), each by itself: a line that is none is one row.

    - lines are counted without the empty ones
    """
    if len(data) > MAXIMUM_BYTES:
        return TOO_LARGE
    begin, records = len(draft.rows), list[Record]()
    with _forgetting(data):
        for line in data.split(b"\n"):
            if line.strip():
                records += _read_entry(_read_resource(line), draft, _NO_ALIASES)
    return Document(rows=len(draft.rows) - begin, records=tuple(records))


@contextlib.contextmanager
def _forgetting(data: bytes) -> Iterator[None]:
    """What was learnt of a large message's codes is not kept: four thousand long ones would fill the memory."""
    yield
    if len(data) > _REMEMBERED:
        _qualify.cache_clear()


_REMEMBERED: Final = 1 << 14


def _read_mixed(data: bytes, draft: Draft) -> Document:
    """Read what is not wholly of our types."""
    try:
        kind = _ANY.decode(data).resource_type
        if kind == "Bundle":
            entries = [
                (entry.full_url, _read_resource(bytes(entry.resource)) if entry.resource else None)
                for entry in _RAW_BUNDLE.decode(data).entry
            ]
            return _read_entries(entries, draft)
    except _UNREADABLE:
        return UNREADABLE
    draft.set_aside(Reason.MALFORMED if kind in _USED else Reason.NOT_USED)
    return Document(rows=1)


def _read_resource(data: bytes) -> Resource | Reason:
    try:
        return _RESOURCE.decode(data)
    except _UNREADABLE:
        pass
    try:
        return Reason.MALFORMED if _ANY.decode(data).resource_type in _USED else Reason.NOT_USED
    except _UNREADABLE:
        return Reason.MALFORMED


def _read_entries(entries: Sequence[tuple[str, Resource | Reason | None]], draft: Draft) -> Document:
    begin, records = len(draft.rows), list[Record]()
    aliases = {url: one.id for url, one in entries if url and isinstance(one, Patient) and one.id}
    for _, resource in entries:
        records += _read_entry(resource, draft, aliases)
    return Document(rows=len(draft.rows) - begin, records=tuple(records))


def _read_entry(
    resource: Resource | Reason | None, draft: Draft, aliases: Mapping[str, str]
) -> tuple[()] | tuple[Record]:
    """Append an entry's rows, at least one, unless it is a record, which is returned."""
    if type(resource) is Observation:  # nearly all of them
        _append_observation(resource, draft, aliases)
    elif resource is None:
        draft.set_aside(Reason.NOT_USED)
    elif isinstance(resource, Reason):
        draft.set_aside(resource)
    elif (record := _take(resource, draft, aliases)) is not None:
        return (record,)
    return ()


_NO_ALIASES: Final[Mapping[str, str]] = {}


def _take(resource: Resource, draft: Draft, aliases: Mapping[str, str]) -> Record | None:
    """Append an Observation's rows; return anything else as a record, or set it aside where it names no patient."""
    if type(resource) is Observation:
        _append_observation(resource, draft, aliases)
        return None
    record: PatientRecord | ConsentRecord | AdministrationRecord
    if isinstance(resource, Patient):
        record = _patient(resource)
    elif isinstance(resource, Consent):
        record = _consent(resource, aliases)
    else:
        assert isinstance(resource, MedicationAdministration)
        record = _administration(resource, aliases)
    if not record.patient:
        draft.set_aside(Reason.PATIENT_MISSING)
        return None
    return record


def _append_observation(one: Observation, draft: Draft, aliases: Mapping[str, str]) -> None:
    patient = patient_id(one.subject, aliases)
    time, fault = read_instant(one.effective_date_time) if one.effective_date_time else _observed(one)
    quality = _ACCEPTED_STATUS.get(one.status, -1)
    if quality < 0:
        quality, fault = SOUND, FAULT[Reason.WITHDRAWN]
    if one.modifier_extension:
        fault = FAULT[Reason.MODIFIED]
    append = draft.rows.append
    quantity = one.value_quantity
    parts = one.component
    if quantity is not None or not parts:
        append((patient, _kind(one.code, quantity), time, _number(quantity), NO_SEQUENCE, quality, fault))
    for part in parts:
        quantity = part.value_quantity
        own = FAULT[Reason.MODIFIED] if part.modifier_extension else fault
        append((patient, _kind(part.code, quantity), time, _number(quantity), NO_SEQUENCE, quality, own))


def patient_id(reference: Reference | None, aliases: Mapping[str, str]) -> str:
    """Return the id of the patient whom a reference names here; empty for another server's or nobody.

    >>> patient_id(Reference(reference="Patient/p1"), {})
    'p1'
    """
    if reference is None:
        return ""
    text = reference.reference
    if text.startswith("Patient/"):
        return text[8:].partition("/")[0]
    if text in aliases:
        return aliases[text]
    return text[9:] if text.startswith("urn:uuid:") else ""


def _observed(one: Observation) -> tuple[int, int]:
    if one.effective_instant:
        return read_instant(one.effective_instant)
    if one.effective_period is not None and one.effective_period.end:
        return read_instant(one.effective_period.end)  # a mean over a period is known when the period ends
    return NO_TIME, FAULT[Reason.TIME_UNREADABLE]


def read_instant(text: str) -> tuple[int, int]:
    """Return a dateTime as milliseconds since 1970 UTC and -1, or `NO_TIME` and the index of the reason.

    >>> read_instant("2018-11-13T17:59:02-05:00")
    (1542149942000, -1)
    >>> read_instant("2018-11-13")[0] == NO_TIME
    True
    """
    # Most instants of a feed lie in few minutes: only their seconds differ, and none has a fraction.
    if len(text) <= _LONGEST and text[16:17] == ":" and text[19:20] in _AFTER_SECONDS and text[17:19] in _SECONDS:
        minute, fault = _read_minute(f"{text[:17]}00{text[19:]}")
        return (minute + _SECONDS[text[17:19]], fault) if fault == NO_FAULT else (minute, fault)
    return _read_whole(text)


_SECONDS: Final = {f"{second:02d}": second * 1000 for second in range(60)}
_AFTER_SECONDS: Final = frozenset({"Z", "+", "-"})
_LONGEST: Final = len("YYYY-MM-DDTHH:MM:SS+ZZ:ZZ")


def _read_whole(text: str) -> tuple[int, int]:
    try:
        at = datetime.fromisoformat(text)
        # FHIR's form, which is not every form of ISO 8601
        if at.tzinfo is None or text[10:11] != "T" or text[4] != "-" or text[7] != "-" or len(text) < 17:
            return NO_TIME, _ZONELESS if at.tzinfo is None else _NO_INSTANT
        return round(at.timestamp() * 1000), NO_FAULT
    except (ValueError, OverflowError):
        return NO_TIME, _ZONELESS if len(text) in (4, 7) and text[:4].isdigit() else _NO_INSTANT


_read_minute: Final = lru_cache(maxsize=4096)(_read_whole)


_ZONELESS: Final = FAULT[Reason.TIME_WITHOUT_ZONE]
_NO_INSTANT: Final = FAULT[Reason.TIME_UNREADABLE]


def _kind(concept: Concept, quantity: Quantity | None) -> tuple[str, str]:
    """Return the first code that is a signal's, or else the first that is qualified at all, and the unit."""
    first = _NOTHING
    for coding in concept.coding:
        if quantity is None:
            kind = _qualify(coding.system, coding.code, "", "")
        else:
            kind = _qualify(coding.system, coding.code, quantity.system, quantity.code)
        if kind[0] in SIGNAL_OF_CODE:
            return kind
        first = first if first[0] else kind
    return first


_NOTHING: Final = ("", "")


@lru_cache(maxsize=4096)
def _qualify(system: str, code: str, unit_system: str, unit: str) -> tuple[str, str]:
    return qualify_code(system, code), qualify_unit(unit_system, unit)


def _number(quantity: Quantity | None) -> float:
    """Return the value; NaN where there is none or only a bound of it ("< 5")."""
    return _NAN if quantity is None or quantity.value is None or quantity.comparator else quantity.value


def _patient(one: Patient) -> PatientRecord:
    return PatientRecord(
        patient=one.id,
        identifiers=tuple((known.system, known.value) for known in one.identifier),
        sex=one.gender,
        born=one.birth_date,
        deceased=one.deceased_boolean or bool(one.deceased_date_time),
        active=one.active,
    )


def _consent(one: Consent, aliases: Mapping[str, str]) -> ConsentRecord:
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


def _administration(one: MedicationAdministration, aliases: Mapping[str, str]) -> AdministrationRecord:
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
