"""SenML in JSON (RFC 8428): base fields resolved, each record a row.

Profile: a resolved name is `<patient>/<code>`, the code as `codes` writes it (`8867-4`, `mdc:147842`, `heart_rate`);
a unit is SenML's own or UCUM. Label `sq`, ours, numbers the first record of a pack, and each record after it is one
more. A pack of n bytes, n <= `MAXIMUM_BYTES`, takes at most `MEMORY_FACTOR` · n while it is read.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from fedtwin_client.ingest.codes import qualify_senml_unit
from fedtwin_client.ingest.document import TOO_LARGE, UNREADABLE, UNSUPPORTED_VERSION, Document
from fedtwin_client.ingest.readings import FAULT, NO_FAULT, NO_TIME, SOUND, Draft
from fedtwin_client.observation_batch import LATEST, NO_SEQUENCE
from fedtwin_client.quarantine import Reason

MAXIMUM_BYTES: Final = 1 << 20
MEMORY_FACTOR: Final = 120
VERSION: Final = 10  # RFC 8428 §4.4
RELATIVE: Final = 2.0**28  # §4.5.3: a smaller time is relative to now

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._/-]*", re.ASCII)  # §4.5.1
_MILLISECONDS: Final = 1000.0
_FARTHEST: Final = float(LATEST) / 2
_NAN: Final = float("nan")


class Measurement(msgspec.Struct, gc=False):
    """A SenML record (§4.3); `vs`, `vb` and `vd` are no numbers."""

    bn: str | None = None
    bt: float | None = None
    bu: str | None = None
    bv: float | None = None
    bver: int | None = None
    n: str = ""
    u: str | None = None
    v: float | None = None
    t: float = 0.0
    sq: int | None = None


_PACK = msgspec.json.Decoder(list[Measurement])
_LABELS = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_message(data: bytes, draft: Draft, *, now: int) -> Document:
    """Read one pack, append a row per record to `draft`. `now`: milliseconds since 1970 UTC. Never raises.

    - a pack of another version, or with a label that must be understood (§4.4) and is not, is refused whole
    """
    if len(data) > MAXIMUM_BYTES:
        return TOO_LARGE
    try:
        pack = _PACK.decode(data)
        if b'_"' in data and any(label.endswith("_") for one in _LABELS.decode(data) for label in one):
            return Document(refused="a label that must be understood is not")
    except _UNREADABLE:
        return UNREADABLE
    if any(one.bver is not None and one.bver != VERSION for one in pack):
        return UNSUPPORTED_VERSION
    _append(pack, draft, now)
    return Document(rows=len(pack))


def _append(pack: list[Measurement], draft: Draft, now: int) -> None:
    name, unit, time, value = "", "", 0.0, 0.0
    sequence = NO_SEQUENCE
    append = draft.rows.append
    for one in pack:
        name = name if one.bn is None else one.bn
        unit = unit if one.bu is None else one.bu
        time = time if one.bt is None else one.bt
        value = value if one.bv is None else one.bv
        if one.sq is not None and 0 <= one.sq < LATEST:
            sequence = one.sq
        patient, code, fault = _split(name + one.n)
        at, wrong = _resolve(time + one.t, now)
        kind = (code, qualify_senml_unit(unit if one.u is None else one.u))
        number = _NAN if one.v is None else value + one.v
        append((patient, kind, at, number, sequence, SOUND, fault if fault != NO_FAULT else wrong))
        if sequence != NO_SEQUENCE:
            sequence = sequence + 1 if sequence + 1 < LATEST else NO_SEQUENCE


def _split(name: str) -> tuple[str, str, int]:
    if not _NAME.fullmatch(name):
        return "", "", FAULT[Reason.MALFORMED]
    patient, _, code = name.rpartition("/")
    return patient, code, NO_FAULT


def _resolve(seconds: float, now: int) -> tuple[int, int]:
    time = seconds * _MILLISECONDS + (now if seconds < RELATIVE else 0)
    if not -_FARTHEST < time < _FARTHEST:
        return NO_TIME, FAULT[Reason.TIME_UNREADABLE]
    return round(time), NO_FAULT
