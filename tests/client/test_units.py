"""Conversions: against published pairs of values, and consistent with the Signal table."""

from __future__ import annotations

import pytest

from fedtwin_client.units import CONVERSIONS, find_conversion
from fedtwin_shared.signal import SIGNALS

# AMA Manual of Style, 11th ed., §17.5, conventional units and conversion factors to SI; UCUM 2.1 for the rest.
PUBLISHED = [
    ("temperature", "[degF]", 212.0, 100.0),
    ("temperature", "[degF]", 98.6, 37.0),
    ("temperature", "K", 310.15, 37.0),
    ("glucose", "mmol/L", 0.0555, 1.0),
    ("creatinine", "umol/L", 88.4, 1.0),
    ("bilirubin", "umol/L", 17.104, 1.0),
    ("cholesterol", "mmol/L", 0.0259, 1.0),
    ("urea_nitrogen", "mmol/L", 0.357, 1.0),
    ("magnesium", "mmol/L", 0.411, 1.0),
    ("lactate", "mg/dL", 1.0, 0.111),
    ("albumin", "g/L", 10.0, 1.0),
    ("arterial_oxygen", "kPa", 0.133, 1.0),
    ("cuff_systolic", "kPa", 16.0, 120.0),
    ("weight", "[lb_av]", 2.2046, 1.0),
    ("weight", "g", 1000.0, 1.0),
    ("height", "[in_i]", 1.0, 2.54),
    ("height", "m", 1.0, 100.0),
    ("arterial_saturation", "1", 0.97, 97.0),
    ("platelets", "10*9/L", 190.0, 190.0),
    ("sodium", "meq/L", 140.0, 140.0),
    ("troponin_t", "ng/L", 14.0, 0.014),
    ("end_expiratory", "mbar", 1.0, 1.01972),
]


@pytest.mark.parametrize(("signal", "unit", "written", "expected"), PUBLISHED)
def test_published_pairs(signal: str, unit: str, written: float, expected: float) -> None:
    conversion = find_conversion(signal, unit)
    assert conversion is not None
    assert written * conversion.factor + conversion.offset == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("key", sorted(SIGNALS))
def test_a_signals_own_unit_changes_nothing(key: str) -> None:
    conversion = find_conversion(key, SIGNALS[key].unit)
    assert conversion is not None
    assert (conversion.factor, conversion.offset) == (1.0, 0.0)


def test_every_conversion_is_of_a_signal_and_scales() -> None:
    for (key, _), conversion in CONVERSIONS.items():
        assert key in SIGNALS
        assert conversion.factor > 0


@pytest.mark.parametrize(("signal", "unit"), [("heart_rate", "bpm"), ("sodium", "mg/dL"), ("glucose", ""), ("x", "1")])
def test_an_unknown_unit_is_not_guessed(signal: str, unit: str) -> None:
    assert find_conversion(signal, unit) is None
