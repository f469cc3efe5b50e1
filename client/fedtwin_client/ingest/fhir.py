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
from functools import lru_cache
from typing import Final

import msgspec

from fedtwin_client.ingest.codes import SIGNAL_OF_CODE, qualify_code, qualify_unit
from fedtwin_client.ingest.document import TOO_LARGE, UNREADABLE, Document
from fedtwin_client.ingest.fhir_records import read_administration, read_consent, read_patient
from fedtwin_client.ingest.fhir_resources import (
    AnyResource,
    Bundle,
    Concept,
    Consent,
    MedicationAdministration,
    Observation,
    Patient,
    Quantity,
    RawBundle,
    Resource,
)
from fedtwin_client.ingest.fhir_values import patient_id, read_instant
from fedtwin_client.ingest.readings import DOUBTFUL, FAULT, NO_TIME, SOUND, Draft
from fedtwin_client.ingest.records import AdministrationRecord, ConsentRecord, PatientRecord, Record
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason

MAXIMUM_BYTES: Final = 1 << 23  # what is larger comes as NDJSON, in parts
MEMORY_FACTOR: Final = 120

_ACCEPTED_STATUS: Final = {"final": SOUND, "amended": SOUND, "corrected": SOUND, "preliminary": DOUBTFUL}
_NAN: Final = float("nan")


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
        record = read_patient(resource)
    elif isinstance(resource, Consent):
        record = read_consent(resource, aliases)
    else:
        assert isinstance(resource, MedicationAdministration)
        record = read_administration(resource, aliases)
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


def _observed(one: Observation) -> tuple[int, int]:
    if one.effective_instant:
        return read_instant(one.effective_instant)
    if one.effective_period is not None and one.effective_period.end:
        return read_instant(one.effective_period.end)  # a mean over a period is known when the period ends
    return NO_TIME, FAULT[Reason.TIME_UNREADABLE]


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
