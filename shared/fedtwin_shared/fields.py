"""Fields of documents that people write and sites sign: their types, and checks that concern more than one field."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

CROSS_FIELD = "cross_field"


def _parse_number(value: object) -> object:
    """Accept the decimal strings of canonical JSON beside TOML's own numbers."""
    return float(value) if isinstance(value, str) else value


def _refuse_infinite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _refuse_unprintable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("expected one line of printable characters")
    return value


Number = Annotated[
    float,
    BeforeValidator(_parse_number),
    AfterValidator(_refuse_infinite),
    PlainSerializer(repr, return_type=str, when_used="json"),
]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Rate = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# What a person reads before approving: a control character could hide or forge the lines around it on a terminal.
Words = Annotated[str, Field(min_length=1), AfterValidator(_refuse_unprintable)]
Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`; an IPv6 host is in brackets. Raises `ValueError`.

    >>> split_address("[::1]:9443")
    ('::1', 9443)
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("expected host:port")
    bare = host.removeprefix("[").removesuffix("]")
    if not bare or (":" in bare) != (host != bare):
        raise ValueError("expected host:port, an IPv6 host in brackets")
    return bare, int(port)


def _check_address(address: str) -> str:
    split_address(address)
    return address


Address = Annotated[str, AfterValidator(_check_address)]


class Section(BaseModel):
    """One table of a document: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def require(holds: bool, *, field: str, expected: str, found: object) -> None:
    """Refuse a document in which fields disagree, naming the one to change and what it holds.

    >>> require(False, field="privacy.epsilon", expected="at least the price, 3.1", found=3.0)
    Traceback (most recent call last):
    pydantic_core._pydantic_core.PydanticCustomError: privacy.epsilon: expected at least the price, 3.1, found 3.0
    """
    if not holds:
        context = {"field": field, "expected": expected, "found": str(found)}
        raise PydanticCustomError(CROSS_FIELD, "{field}: expected {expected}, found {found}", context)
