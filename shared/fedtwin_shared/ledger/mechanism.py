"""What ran on patients, exactly: the closed list of mechanisms that a ledger can price, in decimal numbers.

Design note: a mechanism says what ran and never what somebody believed it cost. Its parameters are exact decimals,
written in one form only, so that the same mechanism has the same bytes and the same price on every machine. A kind in
data is looked up in a list and never chooses code. Neighbouring: one patient added or removed.

A patient whose records lie at k hospitals of one sum moves that sum by k times the clipping norm, so `hospitals` = k
divides the noise multiplier (Dwork, Roth, Foundations (2014), §2.3: sensitivity of a group).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.signing import Json

# One decimal number, one text: no sign, no exponent, no zeros at either end that say nothing.
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{0,39}[1-9])?", re.ASCII)

# Noise beyond these is a slip of the pen; within them the price of one run fits an integer of canonical JSON.
SMALLEST_NOISE: Final = Decimal("0.1")
LARGEST_NOISE: Final = Decimal(1_000_000)
SMALLEST_RATE: Final = Decimal("0.000000001")
LARGEST_SENSITIVITY: Final = 1_000
LARGEST_COUNT: Final = 1_000_000
MOST_HOSPITALS: Final = 1_000


def parse_decimal(text: object, *, field: str) -> Decimal:
    """Return the number of which `text` is the one canonical form. Raises `VerificationError`.

    - not-a-number, infinities, signs, exponents and superfluous zeros are refused
    """
    if not isinstance(text, str) or _DECIMAL.fullmatch(text) is None:
        raise VerificationError(field=field, expected="a canonical decimal number", found="another form")
    return Decimal(text)


def format_decimal(value: Decimal) -> str:
    """Return the canonical form of a number, exactly. Raises `VerificationError` for one that has none."""
    text = format(value, "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    parse_decimal(text, field="number")
    return text


def exact_decimal(value: float) -> Decimal:
    """Return the decimal number that prints like `value`: what a person wrote in a study. Raises `VerificationError`.

    >>> exact_decimal(0.1)
    Decimal('0.1')
    """
    number = Decimal(repr(float(value)))
    if not number.is_finite():
        raise VerificationError(field="number", expected="a finite number", found="another")
    return Decimal(format_decimal(number))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonGaussian:
    """Gaussian noise on a sum over a Poisson sample of patients.

    sampling_rate: probability with which each patient takes part. noise_multiplier: noise sd ÷ L2 sensitivity to one
    record. hospitals: in how many records of this sum one patient may appear.
    """

    sampling_rate: Decimal
    noise_multiplier: Decimal
    hospitals: int = 1

    def __post_init__(self) -> None:
        _check(self.sampling_rate, "sampling_rate", SMALLEST_RATE, Decimal(1))
        _check_noise(self.noise_multiplier, self.hospitals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """Gaussian noise on a sum over all patients. noise_multiplier, hospitals: see `PoissonGaussian`."""

    noise_multiplier: Decimal
    hospitals: int = 1

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier, self.hospitals)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteLaplace:
    """Noise X on integers with P(X = x) proportional to exp(-|x| / scale).

    sensitivity: largest L1 change of the integers that one patient makes, in all their records together.
    """

    scale: Decimal
    sensitivity: int = 1

    def __post_init__(self) -> None:
        _check_count(self.sensitivity, "sensitivity", LARGEST_SENSITIVITY)
        _check(self.scale / self.sensitivity, "scale ÷ sensitivity", SMALLEST_NOISE, LARGEST_NOISE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotPrivate:
    """No noise: ε is ∞, never 0."""


Mechanism = PoissonGaussian | Gaussian | DiscreteLaplace | NotPrivate


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One mechanism that runs `count` times."""

    mechanism: Mechanism
    count: int = 1

    def __post_init__(self) -> None:
        _check_count(self.count, "count", LARGEST_COUNT)


def format_use(use: Use) -> dict[str, Json]:
    """Return the JSON of a use; every field is written, whether or not it has its usual value."""
    match use.mechanism:
        case PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=hospitals):
            fields: dict[str, Json] = {
                "kind": "poisson-gaussian",
                "sampling_rate": format_decimal(rate),
                "noise_multiplier": format_decimal(noise),
                "hospitals": hospitals,
            }
        case Gaussian(noise_multiplier=noise, hospitals=hospitals):
            fields = {"kind": "gaussian", "noise_multiplier": format_decimal(noise), "hospitals": hospitals}
        case DiscreteLaplace(scale=scale, sensitivity=sensitivity):
            fields = {"kind": "discrete-laplace", "scale": format_decimal(scale), "sensitivity": sensitivity}
        case NotPrivate():
            fields = {"kind": "not-private"}
    return fields | {"count": use.count}


def parse_use(value: object) -> Use:
    """Return the use that `format_use` wrote. Raises `VerificationError`.

    - an unknown kind, an unknown or missing field, and a noise of 0 are refused
    """
    if not isinstance(value, dict):
        raise VerificationError(field="mechanism", expected="an object", found=type(value).__name__)
    fields = {key: item for key, item in value.items() if key not in ("kind", "count")}
    kind, count = value.get("kind"), value.get("count")
    mechanism: Mechanism
    match kind, *sorted(fields):
        case "poisson-gaussian", "hospitals", "noise_multiplier", "sampling_rate":
            rate, noise = (parse_decimal(fields[key], field=key) for key in ("sampling_rate", "noise_multiplier"))
            mechanism = PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=fields["hospitals"])
        case "gaussian", "hospitals", "noise_multiplier":
            noise = parse_decimal(fields["noise_multiplier"], field="noise_multiplier")
            mechanism = Gaussian(noise_multiplier=noise, hospitals=fields["hospitals"])
        case "discrete-laplace", "scale", "sensitivity":
            scale = parse_decimal(fields["scale"], field="scale")
            mechanism = DiscreteLaplace(scale=scale, sensitivity=fields["sensitivity"])
        case ("not-private",):
            mechanism = NotPrivate()
        case _:
            raise VerificationError(field="mechanism", expected="a known kind with its own fields", found="another")
    return Use(mechanism=mechanism, count=count)  # type: ignore[arg-type]  # checked by the record itself


def _check_noise(noise: Decimal, hospitals: int) -> None:
    _check_count(hospitals, "hospitals", MOST_HOSPITALS)
    _check(noise / hospitals, "noise_multiplier ÷ hospitals", SMALLEST_NOISE, LARGEST_NOISE)


def _check(value: Decimal, field: str, low: Decimal, high: Decimal) -> None:
    if not (value.is_finite() and low <= value <= high):
        raise VerificationError(field=field, expected=f"{low:f} to {high:f}", found=f"{value}")


def _check_count(value: object, field: str, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise VerificationError(field=field, expected=f"an integer from 1 to {most}", found=f"{value!r}"[:40])
