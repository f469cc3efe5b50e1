"""HL7 v2 messages: ORU^R01 and ADT become readings and events, and every message its acknowledgement.

Design note: the unit of counting is the OBX segment; each becomes one row of the draft, whatever it says. A message
that is refused leaves no row and counts as one. Segments of other kinds, Z segments among them, may be ignored by a
receiver (§2.6.2). Separators are those of MSH. Memory: a message of n bytes, n <= `MAXIMUM_BYTES`, takes at most
`MEMORY_FACTOR` · n while it is read.
Sources: HL7 Version 2.5.1, chapter 2: §2.5 encoding, §2.7 escape sequences, §2.9 acknowledgement, §2.14.9 MSH;
chapter 7: OBX; table 0008 (acknowledgement codes), 0085 (result status), 0211 (character sets), 0357 (error codes).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final, Literal

import msgspec

from fedtwin_client.ingest.codes import qualify_code, qualify_unit
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

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)?(?:\.(\d{1,4}))?([+-]\d{4})?", re.ASCII)
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
_ESCAPES: Final = {"F": 0, "S": 1, "R": 2, "E": 3, "T": 4}  # order of `Separators`

Zone = tzinfo | None
Refuses = Literal["AE", "AR"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Separators:
    """MSH-1 and MSH-2."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"

    @property
    def encoding(self) -> str:
        """MSH-2 as it is written."""
        return f"{self.component}{self.repetition}{self.escape}{self.subcomponent}"


class Header(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What of MSH an acknowledgement needs; text as it was sent, escape sequences included."""

    separators: Separators
    sender: tuple[str, str]
    receiver: tuple[str, str]
    time: str
    type: str
    trigger: str
    control: str
    processing: str
    version: str
    accept_acknowledgement: str
    application_acknowledgement: str
    character_set: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a message is not taken: `AR`, what it is (§2.9.2.1); `AE`, what it says. `code`: table 0357; fixed words."""

    acknowledgement: Refuses
    code: str
    words: str


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message that was read. `rows` of the draft are its own; `header` is None where there was none to answer to."""

    header: Header | None
    rows: int = 0
    event: AdmissionEvent | None = None
    refusal: Refusal | None = None


NO_HEADER = Refusal(acknowledgement="AR", code="100", words="no MSH segment with distinct separators")
TOO_LARGE = Refusal(acknowledgement="AR", code="207", words="message too large")
NO_TYPE = Refusal(acknowledgement="AR", code="101", words="MSH-9, 10, 11 and 12 are required")
UNSUPPORTED_TYPE = Refusal(acknowledgement="AR", code="200", words="unsupported message type")
UNSUPPORTED_PROCESSING = Refusal(acknowledgement="AR", code="202", words="unsupported processing id")
UNSUPPORTED_VERSION = Refusal(acknowledgement="AR", code="203", words="unsupported version")
UNSUPPORTED_CHARACTERS = Refusal(acknowledgement="AE", code="102", words="character set unknown or not kept to")
NO_PATIENT = Refusal(acknowledgement="AE", code="100", words="ADT without PID-3")
INTERNAL = Refusal(acknowledgement="AE", code="207", words="could not be stored, send again")
RATE_LIMIT = Refusal(acknowledgement="AE", code="207", words="more than the agreed rate, send again later")
NOT_REGISTERED = Refusal(acknowledgement="AR", code="207", words="this sender is not registered or was revoked")


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
    field, component, repetition, zone = marks.field, marks.component, marks.repetition, _zone_of(header.time) or zone
    patient = observed = identity = visit = retired = happened = ""
    stamp, time, untimed = "", NO_TIME, _NO_INSTANT
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
            if len(line) <= _REMEMBERED:
                kind = _recall_kind(fields[3], fields[6], component, repetition)
                value = _recall_number(fields[2], fields[5], component)
            else:
                kind = _read_kind(fields[3], fields[6], component, repetition)
                value = _read_number(fields[2], fields[5], component)
            append((patient, kind, time, value, NO_SEQUENCE, quality, fault))
        elif name == "OBR":
            observed = _at(line.split(field, 8), 7)
        elif name == "PID":
            identity = line
            patient = _patient_id(_at(line.split(field, 4), 3), marks)
        elif name == "PV1":
            visit = line
        elif name == "MRG":
            retired = _patient_id(_at(line.split(field, 2), 1), marks)
        elif name == "EVN":
            happened = _at(line.split(field, 3), 2)
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
        visit=unescape(_at(visit, 19).split(marks.component)[0], marks),
        location=unescape(_at(visit, 3), marks),
        sex=_at(identity, 8),
        born=_at(identity, 7),
        time=time if fault == NO_FAULT else None,
    )


def _read_number(kind: str, text: str, component: str) -> float:
    """Return an NM, or an SN that is one number; NaN for everything else."""
    if kind != "NM":
        if kind != "SN":
            return _NAN
        parts = text.split(component)
        text = parts[1] if len(parts) > 1 and parts[0] in ("", "=") and not any(parts[2:]) else ""
    if (text.isascii() and text.isdigit()) or _NUMBER.fullmatch(text):
        return float(text)
    return _NAN


_NAN: Final = float("nan")
_NO_INSTANT: Final = FAULT[Reason.TIME_UNREADABLE]


def _read_kind(code: str, unit: str, component: str, repetition: str) -> tuple[str, str]:
    """Return the qualified code of OBX-3, its own or the alternate one, and the UCUM unit of OBX-6."""
    return _coded(code, component, repetition, qualify_code), _coded(unit, component, repetition, qualify_unit)


# What is the same in thousands of messages is read once; a long segment is not kept, so that what is kept stays small.
_REMEMBERED: Final = 1024
_recall_kind: Final = lru_cache(maxsize=4096)(_read_kind)
_recall_number: Final = lru_cache(maxsize=4096)(_read_number)


def _coded(text: str, component: str, repetition: str, qualify: Callable[[str, str], str]) -> str:
    parts = [*text.split(repetition)[0].split(component), "", "", "", "", "", ""]
    return qualify(parts[2], parts[0]) or qualify(parts[5], parts[3])


def read_time(text: str, zone: Zone) -> tuple[int, int]:
    """Return a DTM as milliseconds since 1970 UTC and -1, or `NO_TIME` and the index of the reason (§2.A.22).

    - to the minute at least: a day is no instant
    - the same wall time twice, when summer time ends, is the first of the two

    >>> read_time("202011221330+0100", None)
    (1606048200000, -1)
    """
    if len(text) > _LONGEST_TIME:
        return NO_TIME, FAULT[Reason.TIME_UNREADABLE]
    # Most instants of a feed lie in few minutes; a fixed offset has no summer time that could begin in one.
    if text[14:15] in _SIGNS and text[12:14] in _SECONDS:
        minute, fault = _read_minute(text[:12] + text[14:])
        return (minute + _SECONDS[text[12:14]], fault) if fault == NO_FAULT else (minute, fault)
    return _read_whole(text, zone)


_SECONDS: Final = {f"{second:02d}": second * 1000 for second in range(60)}
_SIGNS: Final = frozenset("+-")
_LONGEST_TIME: Final = len("YYYYMMDDHHMMSS.SSSS+ZZZZ")


def _read_whole(text: str, zone: Zone) -> tuple[int, int]:
    match = _TIME.fullmatch(text)
    if match is None:
        return NO_TIME, FAULT[Reason.TIME_UNREADABLE]
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        own = _offset(offset) if offset else zone
        if own is None:
            return NO_TIME, FAULT[Reason.TIME_WITHOUT_ZONE]
        millisecond = int(f"{fraction or 0:0<3}"[:3])
        at = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second or 0), tzinfo=own)
        return int((at - _EPOCH).total_seconds()) * 1000 + millisecond, NO_FAULT
    except (ValueError, OverflowError):
        return NO_TIME, FAULT[Reason.TIME_UNREADABLE]


@lru_cache(maxsize=4096)
def _read_minute(text: str) -> tuple[int, int]:
    return _read_whole(text, None)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=256)
def _offset(text: str) -> tzinfo:
    """Return `+HHMM` as a zone. Raises `ValueError` beyond a day."""
    minutes = int(text[1:3]) * 60 + int(text[3:])
    if int(text[3:]) > 59:
        raise ValueError("minutes")
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def _zone_of(time: str) -> Zone:
    """Return the zone that MSH-7 names, the default of the whole message."""
    if len(time) < 5 or time[-5] not in "+-" or not (time[-4:].isascii() and time[-4:].isdigit()):
        return None
    try:
        return _offset(time[-5:])
    except ValueError:
        return None


def _patient_id(text: str, marks: Separators) -> str:
    """Return CX-1 of the repetition whose type is MR, or else of the first that has one."""
    first = ""
    for repetition in text.split(marks.repetition):
        parts = repetition.split(marks.component)
        if parts[0] and parts[0] != '""':
            if len(parts) > 4 and parts[4] == "MR":
                return unescape(parts[0], marks)
            first = first or parts[0]
    return unescape(first, marks)


def unescape(text: str, marks: Separators) -> str:
    r"""Return text with its escape sequences resolved (§2.7).

    Separators and hexadecimal bytes become what they stand for, `\.br\` a line break, highlighting nothing; sequences
    of the sender's own (`\Z…\`), of other character sets (`\C…\`, `\M…\`) and unknown ones stay as they are.

    >>> unescape(r"a\F\b\S\c\T\d\R\e\E\f", Separators())
    'a|b^c&d~e\\f'
    """
    if marks.escape not in text:
        return text
    parts = text.split(marks.escape)
    whole = [parts[0]]
    at = 1
    while at < len(parts):
        if at + 1 == len(parts):  # nothing closes it
            whole.append(marks.escape + parts[at])
            break
        resolved = _resolve(parts[at], marks)
        whole += [marks.escape + parts[at] + marks.escape if resolved is None else resolved, parts[at + 1]]
        at += 2
    return "".join(whole)


def _resolve(name: str, marks: Separators) -> str | None:
    if name in _ESCAPES:
        return (marks.field, marks.component, marks.repetition, marks.escape, marks.subcomponent)[_ESCAPES[name]]
    if name in ("H", "N"):
        return ""
    if name == ".br":
        return "\n"
    if name.startswith("X") and len(name) > 1:
        try:
            return bytes.fromhex(name[1:]).decode("ascii")
        except ValueError:  # which `UnicodeDecodeError` is
            return None
    return None


def _at(fields: list[str], index: int) -> str:
    return fields[index] if index < len(fields) else ""


_FALLBACK: Final = Header(
    separators=Separators(),
    sender=("", ""),
    receiver=("", ""),
    time="",
    type="",
    trigger="",
    control="",
    processing="P",
    version="2.5.1",
    accept_acknowledgement="",
    application_acknowledgement="",
    character_set="",
)
_ENHANCED: Final = {"AA": "CA", "AE": "CE", "AR": "CR"}


def acknowledge(message: Message, *, now: datetime, control: str) -> tuple[bytes, ...]:
    """Return the answers that the sender asked for, in order; `now` needs a zone, `control` is our own MSH-10.

    Original mode (MSH-15 and 16 empty, §2.9.2): one application acknowledgement, `AA`, `AE` or `AR`.
    Enhanced mode (§2.9.3): `CA`, `CE` or `CR` as MSH-15 asks, then the application's as MSH-16 asks. Call it when the
    message is safe: a commit answer says so, and an application answer here says no more.
    """
    header = message.header or _FALLBACK
    outcome = message.refusal.acknowledgement if message.refusal else "AA"
    accept, application = header.accept_acknowledgement, header.application_acknowledgement
    if not accept and not application:
        return (_answer(header, outcome, message.refusal, now, control),)
    answers = []
    if _is_due(accept, outcome):
        answers.append(_answer(header, _ENHANCED[outcome], message.refusal, now, control))
    if _is_due(application, outcome):
        answers.append(_answer(header, outcome, message.refusal, now, f"{control}A"))
    return tuple(answers)


def _is_due(condition: str, outcome: str) -> bool:
    """Table 0155: always, never, on error, on success."""
    return condition == "AL" or (condition == "SU" and outcome == "AA") or (condition == "ER" and outcome != "AA")


def _answer(header: Header, outcome: str, refusal: Refusal | None, now: datetime, control: str) -> bytes:
    marks = header.separators
    field, component = marks.field, marks.component
    modern = header.version >= "2.5"
    shape = ["ACK", *([header.trigger] if header.trigger else []), *(["ACK"] if modern and header.trigger else [])]
    head = [
        *("MSH", marks.encoding, *header.receiver, *header.sender, f"{now:%Y%m%d%H%M%S%z}", "", component.join(shape)),
        *(control, header.processing, header.version, *[""] * 5, header.character_set),
    ]
    said = ["MSA", outcome, header.control]
    error: list[str] = []
    if refusal is not None and modern:
        error = ["ERR", "", "", component.join((refusal.code, refusal.words, "HL70357")), "E"]
    elif refusal is not None:
        said += [refusal.words, "", "", component.join((refusal.code, refusal.words, "HL70357"))]
    lines = [field.join(segment).rstrip(field) for segment in (head, said, error) if segment]
    return "".join(f"{line}\r" for line in lines).encode("latin-1", "replace")
