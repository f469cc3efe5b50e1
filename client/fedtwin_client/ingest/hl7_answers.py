"""What a message of HL7 v2 was, and the acknowledgement that its sender asked for.

Sources: HL7 Version 2.5.1, chapter 2: §2.9 acknowledgement, §2.14.9 MSH; tables 0008, 0155, 0357.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec

from fedtwin_client.ingest.hl7_values import Separators
from fedtwin_client.ingest.records import AdmissionEvent

Refuses = Literal["AE", "AR"]


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
