"""Entries as bytes: canonical JSON, one form each, read strictly or not at all. The promise is in `entry`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Final, NamedTuple

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.entry import (
    MOST_BLOCKS,
    ROUND_PATTERN,
    TASK_PATTERN,
    VERSION,
    Abort,
    Claim,
    Closure,
    CohortDigest,
    Conformance,
    Enrolment,
    Entry,
    Epoch,
    Part,
    Policy,
    Refusal,
    Release,
    Reserve,
    Seal,
    Start,
)
from fedtwin_shared.ledger.mechanism import Use, format_decimal, format_use, parse_decimal, parse_use
from fedtwin_shared.signing import Json, canonical_json, digest

_HEADER: Final = frozenset({"v", "type", "time", "salt"})


def encode_entry(entry: Entry) -> bytes:
    """Return the bytes of an entry. Raises `VerificationError` for one that `parse_entry` would not read again."""
    codecs = _CODECS[type(entry)]
    fields: dict[str, Json] = {name: codec.format(getattr(entry, name)) for name, codec in codecs.items()}
    try:
        data = canonical_json({"v": VERSION, "type": entry.TYPE, "time": entry.time, "salt": entry.salt} | fields)
    except TypeError as err:
        raise VerificationError(field=entry.TYPE, expected="an entry", found="values of other types") from err
    if parse_entry(data) != entry:
        raise VerificationError(field=entry.TYPE, expected="an entry that reads as it was written", found="another")
    return data


def parse_entry(data: bytes) -> Entry:
    """Return the entry of these bytes. Raises `VerificationError`.

    - bytes that are not the canonical form of what they say are refused
    - an unknown version, type or field, a missing field and a value of another type or range are refused
    """
    try:
        value = _DECODER.decode(data.decode())
        if type(value) is not dict or _ENCODER.encode(value).encode() != data:
            raise VerificationError(field="entry", expected="a canonical JSON object", found="another form")
    except (ValueError, RecursionError) as err:
        raise VerificationError(field="entry", expected="canonical JSON without floats", found="another") from err
    kind = value.get("type")
    if type(kind) is not str or kind not in _KINDS or type(value.get("v")) is not int or value["v"] != VERSION:
        raise VerificationError(field="type", expected="an entry of a known type and version", found="another")
    known = _KINDS[kind]
    if value.keys() != known.names:
        raise VerificationError(field=kind, expected="exactly its own fields", found="others")
    fields = {name: codec.parse(value[name], name) for name, codec in known.codecs}
    return known.record(**fields)


def claim_statement(policy: Policy, *, number: int, epsilon: Decimal) -> bytes:
    """Return what the signer of a policy signs to change its ε: good for this ledger and this change alone."""
    claim: Json = {"number": number, "epsilon": format_decimal(epsilon), "policy": digest(encode_entry(policy))}
    return canonical_json({"claim": claim})


class _Codec(NamedTuple):
    """How the value of one field is read and written."""

    parse: Callable[..., object]
    format: Callable[..., Json] = lambda value: value


class _Kind(NamedTuple):
    record: Callable[..., Entry]
    names: frozenset[str]
    codecs: tuple[tuple[str, _Codec], ...]


class _Pattern:
    """Text of one form, which has no two readings."""

    def __init__(self, pattern: str, *, expected: str) -> None:
        self._match, self._expected = re.compile(pattern, re.ASCII).fullmatch, expected

    def parse(self, value: object, field: str) -> str:
        if type(value) is not str or self._match(value) is None:
            raise VerificationError(field=field, expected=self._expected, found="another value")
        return value

    @property
    def codec(self) -> _Codec:
        return _Codec(self.parse)


_TASK_KEY: Final = _Pattern(TASK_PATTERN, expected="study/run/round/attempt/task")
_BLOCK: Final = _Pattern(r"(?:r|0|[1-9][0-9]{0,3})(?:/[1-9][0-9]{0,3}\.[a-z]{1,16}){0,32}", expected="a block's name")
_PART_NAME: Final = _Pattern("[a-z]{1,16}", expected="one word of small letters")


def _integer(low: int, high: int) -> _Codec:
    def parse(value: object, field: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise VerificationError(field=field, expected=f"an integer from {low} to {high}", found="another value")
        return value

    return _Codec(parse)


def _decimal(*, above: Decimal, most: Decimal) -> _Codec:
    def parse(value: object, field: str) -> Decimal:
        number = parse_decimal(value, field=field)
        if not above < number <= most:
            raise VerificationError(field=field, expected=f"above {above:f}, at most {most:f}", found="another value")
        return number

    return _Codec(parse, format_decimal)


def _items(value: object, field: str, most: int) -> list[object]:
    if type(value) is not list or not 1 <= len(value) <= most:
        raise VerificationError(field=field, expected=f"a list of 1 to {most}", found="another value")
    return value


def _parse_uses(value: object, field: str) -> tuple[Use, ...]:
    # A log holds few different mechanisms, many times: each is checked once.
    return _uses_of(_ENCODER.encode(_items(value, field, 64)), field)


@lru_cache(maxsize=4096)
def _uses_of(text: str, field: str) -> tuple[Use, ...]:
    uses = tuple(parse_use(item) for item in _DECODER.decode(text))
    if len({use.mechanism for use in uses}) != len(uses):
        raise VerificationError(field=field, expected="every mechanism once", found="one twice")
    return uses


def _format_uses(uses: tuple[Use, ...]) -> Json:
    return [format_use(use) for use in uses]


def _parse_blocks(value: object, field: str) -> tuple[str, ...]:
    items = _items(value, field, MOST_BLOCKS)
    return _blocks_of(tuple(items), field) if all(type(item) is str for item in items) else _blocks_of((), field)


@lru_cache(maxsize=1024)
def _blocks_of(names: tuple[str, ...], field: str) -> tuple[str, ...]:
    if not names or list(names) != sorted(set(names)):
        raise VerificationError(field=field, expected="names in increasing order, each once", found="another list")
    return tuple(_BLOCK.parse(name, field) for name in names)


def _parse_parts(value: object, field: str) -> tuple[Part, ...]:
    parts = []
    for item in _items(value, field, 8):
        if type(item) is not dict or item.keys() != {"name", "programme"}:
            raise VerificationError(field=field, expected="a name and a programme", found="another value")
        name = _PART_NAME.parse(item["name"], field)
        parts.append(Part(name=name, programme=_parse_uses(item["programme"], field)))
    names = [part.name for part in parts]
    if names != sorted(set(names)):
        raise VerificationError(field=field, expected="parts in increasing order, each once", found="another list")
    return tuple(parts)


def _format_parts(parts: tuple[Part, ...]) -> Json:
    return [{"name": part.name, "programme": _format_uses(part.programme)} for part in parts]


def _refuse_float(text: str) -> float:
    raise ValueError(f"a float or constant of {len(text)} characters")


_DECODER: Final = json.JSONDecoder(parse_float=_refuse_float, parse_constant=_refuse_float)
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

_DIGEST: Final = _Pattern("[0-9a-f]{64}", expected="a SHA-256 in hexadecimal").codec
_PUBLIC_KEY: Final = _Pattern("ed25519:[A-Za-z0-9+/]{43}=", expected="ed25519: and 32 bytes in base64").codec
_ENVELOPE: Final = _Pattern("[{][ -~]{1,4094}[}]", expected="a DSSE envelope").codec
_STEP: Final = {"task": _TASK_KEY.codec}
_HEADER_CODECS: Final = {
    "time": _integer(0, 10**11),
    "salt": _Pattern("[0-9a-f]{32}", expected="16 bytes in hexadecimal").codec,
}
_EPSILON: Final = _decimal(above=Decimal(0), most=Decimal(1000))


def _constant(word: str) -> _Codec:
    return _Pattern(word, expected=word).codec


_CODECS: Final[Mapping[type[Entry], Mapping[str, _Codec]]] = {
    Policy: {
        "epsilon": _EPSILON,
        "delta": _decimal(above=Decimal(0), most=Decimal("0.1")),
        "order": _integer(2, 256),
        "programme": _Codec(_parse_uses, _format_uses),
        "signer": _PUBLIC_KEY,
        "site_policy": _DIGEST,
        "rule": _constant("renyi-filter"),
        "unit": _constant("patient"),
        "adjacency": _constant("add-or-remove-one"),
    },
    Claim: {"number": _integer(1, 10**6), "epsilon": _EPSILON, "envelope": _ENVELOPE},
    Epoch: {"number": _integer(0, 9999)},
    Enrolment: {"study": _DIGEST, "plan": _DIGEST, "parts": _Codec(_parse_parts, _format_parts)},
    Closure: {"study": _DIGEST},
    CohortDigest: {"round": _Pattern(ROUND_PATTERN, expected="study/run/round").codec, "cohort": _DIGEST},
    Reserve: _STEP
    | {
        "blocks": _Codec(_parse_blocks, list),
        "uses": _Codec(_parse_uses, _format_uses),
        "price": _integer(1, 2**53 - 1),
        "membership": _DIGEST,
    },
    Start: _STEP,
    Seal: _STEP | {"plan": _DIGEST, "output": _DIGEST, "code": _DIGEST},
    Release: _STEP | {"recipient": _PUBLIC_KEY, "checkpoint": _integer(0, 2**53 - 1)},
    Abort: _STEP,
    Refusal: {"plan": _DIGEST, "code": _Pattern("[a-z]{1,16}(?:-[a-z]{1,16}){0,4}", expected="a code").codec},
    Conformance: {
        "code": _DIGEST,
        "result": _DIGEST,
        "outcome": _Pattern("passed|failed", expected="passed or failed").codec,
    },
}
_KINDS: Final = {
    record.TYPE: _Kind(record, _HEADER | codecs.keys(), tuple((_HEADER_CODECS | dict(codecs)).items()))
    for record, codecs in _CODECS.items()
}
