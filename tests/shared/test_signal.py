"""The table of signals: codes are well formed, units are UCUM, normalisation keeps its promises."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.signal import CATEGORIES, CLIP, SIGNALS, Category, normalise

# UCUM §2: the units the table uses, written out; annotations in braces carry no meaning.
UCUM = re.compile(
    r"1|%|a|cm|kg|mL|mV|Cel|/min|L/min|mL/\(24\.h\)|mm\[Hg\]|cm\[H2O\]|\[pH\]|10\*3/uL|U/L|[mn]?g/[dm]L|mmol/L|\{score\}"
)

# Golden rows, checked by hand against loinc.org.
GOLDEN = {
    "heart_rate": ("8867-4", "/min"),
    "respiratory_rate": ("9279-1", "/min"),
    "temperature": ("8310-5", "Cel"),
    "pulse_oximetry": ("59408-5", "%"),
    "systolic_pressure": ("8480-6", "mm[Hg]"),
    "cuff_mean": ("76536-2", "mm[Hg]"),
    "arterial_mean": ("76214-6", "mm[Hg]"),
    "glasgow": ("9269-2", "{score}"),
    "inspired_oxygen": ("3150-0", "%"),
    "arterial_ph": ("2744-1", "[pH]"),
    "lactate": ("2524-7", "mmol/L"),
    "white_cells": ("6690-2", "10*3/uL"),
    "sodium": ("2951-2", "mmol/L"),
    "creatinine": ("2160-0", "mg/dL"),
    "glucose": ("2345-7", "mg/dL"),
    "bilirubin": ("1975-2", "mg/dL"),
    "platelets": ("777-3", "10*3/uL"),
    "weight": ("29463-7", "kg"),
    "st_depression": ("91546-2", "mV"),
}


def _loinc_check_digit(body: str) -> int:
    """Modulus 10 as LOINC Users' Guide, appendix C, computes it."""
    doubled = str(int(body[::-1][0::2]) * 2)
    return -sum(int(digit) for digit in body[::-1][1::2] + doubled) % 10


@pytest.mark.parametrize("key", sorted(GOLDEN))
def test_golden_codes_and_units(key: str) -> None:
    assert (SIGNALS[key].loinc, SIGNALS[key].unit) == GOLDEN[key]


@pytest.mark.parametrize("key", sorted(SIGNALS))
def test_row_is_well_formed(key: str) -> None:
    signal = SIGNALS[key]
    assert signal.key == key
    assert re.fullmatch(r"[a-z][a-z0-9_]*", key)
    assert UCUM.fullmatch(signal.unit), signal.unit
    typical = math.exp(signal.mean) if signal.scale == "log" else signal.mean
    assert signal.low <= typical <= signal.high
    assert signal.source
    if signal.loinc is not None:
        body, check = signal.loinc.split("-")
        assert int(check) == _loinc_check_digit(body), signal.loinc


def test_only_the_ventilation_flag_has_no_code() -> None:
    assert {key for key, signal in SIGNALS.items() if signal.loinc is None} == {"ventilated"}


def test_no_code_is_used_twice() -> None:
    codes = [signal.loinc for signal in SIGNALS.values() if signal.loinc is not None]
    assert len(set(codes)) == len(codes)


def test_signals_and_categories_share_no_key() -> None:
    assert not set(SIGNALS) & set(CATEGORIES)


@pytest.mark.parametrize("key", sorted(CATEGORIES))
def test_category_is_well_formed(key: str) -> None:
    category = CATEGORIES[key]
    assert category.key == key
    assert re.fullmatch(r"(loinc:\d+-\d|sct:\d+|own:[a-z_]+)", category.code), category.code
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", level) for level in category.levels)


def test_tables_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        SIGNALS["x"] = SIGNALS["age"]  # type: ignore[index]  # the test is that this line fails
    with pytest.raises(FrozenInstanceError):
        SIGNALS["age"].mean = 0.0  # type: ignore[misc]  # the test is that this line fails


@given(
    key=st.sampled_from(sorted(SIGNALS)),
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8),
    limit=st.floats(0.5, 10),
)
def test_every_result_is_within_the_limit_or_nan_where_the_value_is(
    key: str, values: list[float], limit: float
) -> None:
    result = normalise(SIGNALS[key], values, limit=limit)
    assert result.shape == (len(values),)
    assert np.array_equal(np.isnan(result), np.isnan(np.asarray(values, dtype=float)))
    assert bool(np.all(np.abs(result[~np.isnan(result)]) <= limit))


@given(key=st.sampled_from(sorted(SIGNALS)), value=st.floats(-1e9, 1e9))
def test_a_value_outside_the_plausible_range_counts_as_the_nearer_end(key: str, value: float) -> None:
    signal = SIGNALS[key]
    nearest = min(max(value, signal.low), signal.high)
    assert normalise(signal, value) == normalise(signal, nearest)


@given(st.lists(st.floats(0, 300), min_size=1, max_size=6), st.floats(0, 300))
def test_no_value_changes_another_result(values: list[float], other: float) -> None:
    signal = SIGNALS["heart_rate"]
    assert np.array_equal(normalise(signal, values), normalise(signal, [*values, other])[:-1])


def test_log_scale_is_natural_logarithm() -> None:
    creatinine = SIGNALS["creatinine"]
    one_up = math.exp(creatinine.mean + creatinine.sd)
    assert float(normalise(creatinine, one_up)) == pytest.approx(1.0)
    assert float(normalise(creatinine, 30.0)) == pytest.approx(min(CLIP, (math.log(30) - creatinine.mean) / 0.6))


def test_bad_rows_are_refused() -> None:
    age = SIGNALS["age"]
    for change in ({"low": 200.0}, {"sd": 0.0}, {"sd": math.nan}, {"low": math.nan}, {"scale": "log"}):
        with pytest.raises(ValueError):
            replace(age, **change)
    with pytest.raises(ValueError):
        Category(key="k", name="n", code="own:k", levels=("a", "a"))
    with pytest.raises(ValueError):
        normalise(age, 1.0, limit=math.nan)
