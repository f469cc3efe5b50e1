"""Mechanisms are exact, have one form each, and nothing without noise passes for something private."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.mechanism import (
    DiscreteLaplace,
    Gaussian,
    Mechanism,
    NotPrivate,
    PoissonGaussian,
    Use,
    exact_decimal,
    format_decimal,
    format_use,
    parse_decimal,
    parse_use,
)

MECHANISMS = [
    PoissonGaussian(sampling_rate=Decimal("0.05"), noise_multiplier=Decimal("1.1"), hospitals=2),
    Gaussian(noise_multiplier=Decimal(10)),
    DiscreteLaplace(scale=Decimal("12.5"), sensitivity=3),
    NotPrivate(),
]
GAUSSIAN = {"kind": "gaussian", "noise_multiplier": "1.5", "hospitals": 1, "count": 2}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_what_is_written_is_read_again(mechanism: Mechanism) -> None:
    use = Use(mechanism=mechanism, count=7)
    assert parse_use(format_use(use)) == use


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "staircase"},
        {"kind": None},
        {"kind": ["gaussian"]},
        {"noise_multiplier": "0"},
        {"noise_multiplier": "-1"},
        {"noise_multiplier": "NaN"},
        {"noise_multiplier": "Infinity"},
        {"noise_multiplier": "1e9"},
        {"noise_multiplier": "9999999"},
        {"noise_multiplier": "0.0999"},
        {"noise_multiplier": "1.50"},
        {"noise_multiplier": "01.5"},
        {"noise_multiplier": ".5"},
        {"noise_multiplier": "1.5\n"},
        {"noise_multiplier": "١"},
        {"noise_multiplier": 1.5},
        {"noise_multiplier": "1" * 30},
        {"hospitals": 0},
        {"hospitals": -1},
        {"hospitals": True},
        {"hospitals": 16},  # 1.5 / 16 is less than the smallest noise
        {"hospitals": "1"},
        {"count": 0},
        {"count": 10**7},
        {"count": True},
        {"count": None},
        {"sampling_rate": "0.1"},
        {"epsilon": "0.1"},
    ],
)
def test_a_malformed_mechanism_is_refused(change: dict[str, Any]) -> None:
    parse_use(GAUSSIAN)
    with pytest.raises(VerificationError):
        parse_use(GAUSSIAN | change)


@pytest.mark.parametrize("rate", ["0", "1.1", "-0.1", "NaN", "0.0000000001"])
def test_a_rate_that_is_no_probability_is_refused(rate: str) -> None:
    value = {"kind": "poisson-gaussian", "sampling_rate": rate, "noise_multiplier": "1", "hospitals": 1, "count": 1}
    with pytest.raises(VerificationError):
        parse_use(value)


@pytest.mark.parametrize(("scale", "sensitivity"), [("0", 1), ("1", 0), ("1", 11), ("1", 1.0), ("9999999", 1)])
def test_laplace_noise_that_hides_nothing_is_refused(scale: str, sensitivity: Any) -> None:
    with pytest.raises(VerificationError):
        parse_use({"kind": "discrete-laplace", "scale": scale, "sensitivity": sensitivity, "count": 1})


@pytest.mark.parametrize("value", [None, [], "gaussian", {}, {"kind": "gaussian"}])
def test_what_is_no_mechanism_is_refused(value: object) -> None:
    with pytest.raises(VerificationError):
        parse_use(value)


def test_not_a_number_is_refused_by_the_records_themselves() -> None:
    for number in (Decimal("NaN"), Decimal("Infinity"), Decimal(-1), Decimal(0)):
        with pytest.raises(VerificationError):
            Gaussian(noise_multiplier=number)


def test_a_float_becomes_the_number_that_was_written() -> None:
    assert [format_decimal(exact_decimal(value)) for value in (0.1, 1.0, 1e-7, 100.0, 1.25)] == [
        "0.1",
        "1",
        "0.0000001",
        "100",
        "1.25",
    ]
    for value in (math.nan, math.inf, -1.0, 1e12, 1e-60):
        with pytest.raises(VerificationError):
            exact_decimal(value)


def test_a_decimal_has_one_form() -> None:
    assert format_decimal(Decimal("1.500")) == "1.5"
    assert parse_decimal("1.5", field="x") == Decimal("1.500")
