"""Values as HL7 v2 writes them: separators, numbers, codes, instants, escapes.

Sources: HL7 Version 2.5.1, chapter 2: §2.5 encoding, §2.7 escape sequences, §2.A.22 DTM.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Final

from fedtwin_client.ingest.codes import qualify_code, qualify_unit
from fedtwin_client.ingest.readings import FAULT, NO_FAULT, NO_TIME
from fedtwin_client.quarantine import Reason

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)?(?:\.(\d{1,4}))?([+-]\d{4})?", re.ASCII)
_ESCAPES: Final = {"F": 0, "S": 1, "R": 2, "E": 3, "T": 4}  # order of `Separators`

Zone = tzinfo | None


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


def read_number(kind: str, text: str, component: str) -> float:
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


def read_kind(code: str, unit: str, component: str, repetition: str) -> tuple[str, str]:
    """Return the qualified code of OBX-3, its own or the alternate one, and the UCUM unit of OBX-6."""
    return _coded(code, component, repetition, qualify_code), _coded(unit, component, repetition, qualify_unit)


# What is the same in thousands of messages is read once; a long segment is not kept, so that what is kept stays small.
REMEMBERED: Final = 1024
recall_kind: Final = lru_cache(maxsize=4096)(read_kind)
recall_number: Final = lru_cache(maxsize=4096)(read_number)


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


def zone_of(time: str) -> Zone:
    """Return the zone that MSH-7 names, the default of the whole message."""
    if len(time) < 5 or time[-5] not in "+-" or not (time[-4:].isascii() and time[-4:].isdigit()):
        return None
    try:
        return _offset(time[-5:])
    except ValueError:
        return None


def patient_id(text: str, marks: Separators) -> str:
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


def at(fields: list[str], index: int) -> str:
    """Return a field, empty where there is none."""
    return fields[index] if index < len(fields) else ""
