"""Instants and references as FHIR writes them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Final

from fedtwin_client.ingest.fhir_resources import Reference
from fedtwin_client.ingest.readings import FAULT, NO_FAULT, NO_TIME
from fedtwin_client.quarantine import Reason


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


def read_instant(text: str) -> tuple[int, int]:
    """Return a dateTime as milliseconds since 1970 UTC and -1, or `NO_TIME` and the index of the reason.

    >>> read_instant("2018-11-13T17:59:02-05:00")
    (1542149942000, -1)
    >>> read_instant("2018-11-13")[0] == NO_TIME
    True
    """
    # Most instants of a feed lie in few minutes: only their seconds differ, and none has a fraction.
    if _SHORTEST <= len(text) <= _LONGEST and text[16] == ":" and text[19] in "Z+-":
        second = _SECONDS.get(text[17:19])
        if second is not None:
            minute, fault = _read_minute(text[:17], text[19:])
            return (minute + second, fault) if fault == NO_FAULT else (minute, fault)
    return _read_whole(text)


_SECONDS: Final = {f"{second:02d}": second * 1000 for second in range(60)}
_SHORTEST: Final = len("YYYY-MM-DDTHH:MM:SSZ")
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


@lru_cache(maxsize=4096)
def _read_minute(before: str, after: str) -> tuple[int, int]:
    return _read_whole(f"{before}00{after}")


_ZONELESS: Final = FAULT[Reason.TIME_WITHOUT_ZONE]
_NO_INSTANT: Final = FAULT[Reason.TIME_UNREADABLE]
