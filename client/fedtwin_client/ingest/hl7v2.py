"""HL7 v2 messages: ORU^R01 and ADT become readings and events.

Design note: the unit of counting is the OBX segment; each becomes one row of the draft, whatever it says. A message
that is refused leaves no row and counts as one. Segments of other kinds, Z segments among them, may be ignored by a
receiver (§2.6.2). Separators are those of MSH. Memory: a message of n bytes, n <= `MAXIMUM_BYTES`, takes at most
`MEMORY_FACTOR` · n while it is read.
Sources: HL7 Version 2.5.1, chapter 2: §2.5 encoding, §2.14.9 MSH; chapter 7: OBX; table 0085 (result status), 0211
(character sets).
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import Final

from fedtwin_client.ingest.hl7_answers import (
    NO_HEADER,
    NO_PATIENT,
    NO_TYPE,
    TOO_LARGE,
    UNSUPPORTED_CHARACTERS,
    UNSUPPORTED_PROCESSING,
    UNSUPPORTED_TYPE,
    UNSUPPORTED_VERSION,
    Header,
    Message,
    Refusal,
)
from fedtwin_client.ingest.hl7_values import (
    REMEMBERED,
    Separators,
    Zone,
    at,
    patient_id,
    read_kind,
    read_number,
    read_time,
    recall_kind,
    recall_number,
    unescape,
    zone_of,
)
from fedtwin_client.ingest.readings import DOUBTFUL, FAULT, NO_FAULT, NO_TIME, SOUND, Draft
from fedtwin_client.ingest.records import AdmissionEvent
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason

MAXIMUM_BYTES: Final = 1 << 20
MEMORY_FACTOR: Final = 120  # a segment of four bytes is a string and a list of its own

# Table 0211; a message in another one is refused, because nobody knows what its bytes say.
CHARACTER_SETS: Final = {
    "": "ascii",
    "ASCII": "ascii",
    **{f"8859/{part}": f"iso8859-{part}" for part in (*range(1, 10), 15)},
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",  # not in the table and sent by many
}
_ACCEPTED_STATUS: Final = {"F": SOUND, "C": SOUND, "P": DOUBTFUL, "R": DOUBTFUL, "S": DOUBTFUL, "": DOUBTFUL}

_VERSIONS: Final = frozenset(
    {
        "2.1",
        "2.2",
        "2.3",
        "2.3.1",
        "2.4",
        "2.5",
        "2.5.1",
        "2.6",
        "2.7",
        "2.7.1",
        "2.8",
        "2.8.1",
        "2.8.2",
        "2.9",
        "2.9.1",
    }
)


def read_message(
    data: bytes, draft: Draft, *, zone: Zone = None, processing: frozenset[str] = frozenset({"P"})
) -> Message:
    """Read one message, append a row per OBX to `draft`, and return what it was. Never raises.

    `zone` is the feed's own, for times without an offset where MSH-7 has none either (§2.A.22).
    """
    if len(data) > MAXIMUM_BYTES:
        return Message(header=None, refusal=TOO_LARGE)
    data = data.removeprefix(codecs.BOM_UTF8)  # no part of HL7, written by editors and gateways all the same
    if b"\n" in data:
        data = data.replace(b"\r\n", b"\r").replace(b"\n", b"\r")
    end = data.find(b"\r")
    header = _read_header(data if end < 0 else data[:end])
    if header is None:
        return Message(header=None, refusal=NO_HEADER)
    if refusal := _judge_header(header, processing):
        return Message(header=header, refusal=refusal)
    text = _decode(data, header.character_set)
    if text is None:
        return Message(header=header, refusal=UNSUPPORTED_CHARACTERS)
    begin = len(draft.rows)
    event = _read_segments(text, header, draft, zone)
    if event is not None and not event.patient:
        del draft.rows[begin:]
        return Message(header=header, refusal=NO_PATIENT)
    return Message(header=header, rows=len(draft.rows) - begin, event=event)


def _read_header(line: bytes) -> Header | None:
    # Latin-1 keeps every byte, so that an answer gives back what it was sent.
    text = line.decode("latin-1")
    if not text.startswith("MSH") or len(text) < 9:
        return None
    field = text[3]
    fields = text.split(field)
    separators = _separators(field, fields[1])
    if separators is None:
        return None
    if len(fields) < 19:
        fields += [""] * (19 - len(fields))
    component = separators.component
    kind = fields[8].split(component)
    return Header(
        separators=separators,
        sender=(fields[2], fields[3]),
        receiver=(fields[4], fields[5]),
        time=fields[6],
        type=kind[0],
        trigger=kind[1] if len(kind) > 1 else "",
        control=fields[9],
        processing=fields[10].partition(component)[0],
        version=fields[11].partition(component)[0],
        accept_acknowledgement=fields[14],
        application_acknowledgement=fields[15],
        character_set=fields[17].partition(separators.repetition)[0],
    )


@lru_cache(maxsize=64)
def _separators(field: str, marks: str) -> Separators | None:
    # The fifth, for truncated text, came with 2.7.
    if not 4 <= len(marks) <= 5 or len({field, *marks}) != len(marks) + 1 or any(mark.isalnum() for mark in marks):
        return None
    return Separators(field=field, component=marks[0], repetition=marks[1], escape=marks[2], subcomponent=marks[3])


def _judge_header(header: Header, processing: frozenset[str]) -> Refusal | None:
    if not (header.type and header.control and header.processing and header.version):
        return NO_TYPE
    if header.version not in _VERSIONS:
        return UNSUPPORTED_VERSION
    if header.processing not in processing:
        return UNSUPPORTED_PROCESSING
    if header.type != "ADT" and (header.type, header.trigger) != ("ORU", "R01"):
        return UNSUPPORTED_TYPE
    return None


def _decode(data: bytes, character_set: str) -> str | None:
    encoding = CHARACTER_SETS.get(character_set)
    if encoding is None:
        return None
    if not character_set and not data.isascii():
        encoding = "utf-8"  # the standard says ASCII; a sender that says nothing and keeps to UTF-8 is understood
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _read_segments(text: str, header: Header, draft: Draft, zone: Zone) -> AdmissionEvent | None:
    """Append a row per OBX (§7.4.2); return the event of an ADT message."""
    marks = header.separators
    field, component, repetition, zone = marks.field, marks.component, marks.repetition, zone_of(header.time) or zone
    patient = observed = identity = visit = retired = happened = ""
    stamp, time, untimed = "", NO_TIME, FAULT[Reason.TIME_UNREADABLE]
    append = draft.rows.append
    for line in text.split("\r"):
        name = line[:3]
        if name == "OBX":
            fields = line.split(field)
            if len(fields) < 15:
                fields += [""] * (15 - len(fields))
            if (fields[14] or observed) != stamp:
                stamp = fields[14] or observed
                time, untimed = read_time(stamp, zone)
            quality, fault = _ACCEPTED_STATUS.get(fields[11], -1), untimed
            if quality < 0:
                quality, fault = SOUND, FAULT[Reason.WITHDRAWN]
            if len(line) <= REMEMBERED:
                kind = recall_kind(fields[3], fields[6], component, repetition)
                value = recall_number(fields[2], fields[5], component)
            else:
                kind = read_kind(fields[3], fields[6], component, repetition)
                value = read_number(fields[2], fields[5], component)
            append((patient, kind, time, value, NO_SEQUENCE, quality, fault))
        elif name == "OBR":
            observed = at(line.split(field, 8), 7)
        elif name == "PID":
            identity = line
            patient = patient_id(at(line.split(field, 4), 3), marks)
        elif name == "PV1":
            visit = line
        elif name == "MRG":
            retired = patient_id(at(line.split(field, 2), 1), marks)
        elif name == "EVN":
            happened = at(line.split(field, 3), 2)
    if header.type != "ADT":
        return None
    return _make_event(header, patient, retired, identity.split(field), visit.split(field), happened, zone)


def _make_event(
    header: Header, patient: str, retired: str, identity: list[str], visit: list[str], happened: str, zone: Zone
) -> AdmissionEvent:
    marks = header.separators
    time, fault = read_time(happened or header.time, zone)
    return AdmissionEvent(
        event=header.trigger,
        patient=patient,
        retired=retired,
        visit=unescape(at(visit, 19).split(marks.component)[0], marks),
        location=unescape(at(visit, 3), marks),
        sex=at(identity, 8),
        born=at(identity, 7),
        time=time if fault == NO_FAULT else None,
    )
