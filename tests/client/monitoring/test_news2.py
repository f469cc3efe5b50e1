"""NEWS2 at every published boundary. Source: RCP 2017, National Early Warning Score (NEWS) 2, chart 1."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.monitoring.scores import (
    PARTS,
    UNKNOWN,
    Band,
    News2,
    score_news2,
    score_qsofa,
    score_sirs,
    shock_index,
)

USUAL = {
    "respiratory_rate": 16.0,
    "pulse_oximetry": 97.0,
    "oxygen": 0.0,
    "systolic_pressure": 120.0,
    "heart_rate": 70.0,
    "alert": 1.0,
    "temperature": 37.0,
}

# Both ends of every range of the chart, and its points.
CHART: dict[str, dict[int, tuple[float, float]]] = {
    "respiratory_rate": {3: (2, 8), 1: (9, 11), 0: (12, 20), 2: (21, 24)},
    "systolic_pressure": {3: (30, 90), 2: (91, 100), 1: (101, 110), 0: (111, 219)},
    "heart_rate": {3: (10, 40), 1: (41, 50), 0: (51, 90), 2: (111, 130)},
    "temperature": {3: (25.0, 35.0), 1: (35.1, 36.0), 0: (36.1, 38.0), 2: (39.1, 44.0)},
    "pulse_oximetry": {3: (30, 91), 2: (92, 93), 1: (94, 95), 0: (96, 100)},
}
FURTHER: list[tuple[str, float, int]] = [
    *(("respiratory_rate", value, 3) for value in (25, 80)),
    *(("systolic_pressure", value, 3) for value in (220, 300)),
    *(("heart_rate", value, points) for value, points in ((91, 1), (110, 1), (131, 3), (300, 3))),
    *(("temperature", value, 1) for value in (38.1, 39.0)),
]
CASES = [
    *((part, value, points) for part, ranges in CHART.items() for points, ends in ranges.items() for value in ends),
    *FURTHER,
]
# Scale 2, for hypercapnic respiratory failure: saturation, on oxygen, points.
SCALE_2 = [
    *((value, oxygen, 3) for value in (30, 83) for oxygen in (0, 1)),
    *((value, oxygen, 2) for value in (84, 85) for oxygen in (0, 1)),
    *((value, oxygen, 1) for value in (86, 87) for oxygen in (0, 1)),
    *((value, oxygen, 0) for value in (88, 92) for oxygen in (0, 1)),
    *((value, 0, 0) for value in (93, 94, 95, 96, 97, 100)),
    *((93, 1, 1), (94, 1, 1), (95, 1, 2), (96, 1, 2), (97, 1, 3), (100, 1, 3)),
]


def score(changed: Mapping[str, npt.ArrayLike], *, scale_2: bool = False) -> News2:
    values: dict[str, npt.ArrayLike] = {**USUAL, **changed}
    return score_news2(**values, scale_2=scale_2)


def plain(found: tuple[npt.NDArray[np.int8], npt.NDArray[np.bool_]]) -> tuple[int, bool]:
    return int(found[0]), bool(found[1])


@pytest.mark.parametrize(("part", "value", "points"), CASES)
def test_every_boundary_of_the_chart(part: str, value: float, points: int) -> None:
    found = score({part: value})
    assert found.parts[PARTS.index(part)] == points
    assert found.total == points
    assert bool(found.red) == (points == 3)


@pytest.mark.parametrize(("value", "oxygen", "points"), SCALE_2)
def test_every_boundary_of_the_second_saturation_scale(value: float, oxygen: float, points: int) -> None:
    found = score({"pulse_oximetry": value, "oxygen": oxygen}, scale_2=True)
    assert found.parts[PARTS.index("pulse_oximetry")] == points
    assert found.total == points + 2 * oxygen


def test_oxygen_and_consciousness() -> None:
    assert score({"oxygen": 1.0}).total == 2
    assert score({"alert": 0.0}).total == 3
    assert bool(score({"alert": 0.0}).red)


@pytest.mark.parametrize(
    ("changed", "total", "band"),
    [
        ({}, 0, Band.LOW),
        ({"heart_rate": 120.0, "temperature": 39.5}, 4, Band.LOW),
        ({"respiratory_rate": 25.0}, 3, Band.LOW_MEDIUM),
        ({"respiratory_rate": 25.0, "oxygen": 1.0}, 5, Band.MEDIUM),
        ({"heart_rate": 120.0, "temperature": 39.5, "oxygen": 1.0}, 6, Band.MEDIUM),
        ({"respiratory_rate": 25.0, "oxygen": 1.0, "pulse_oximetry": 92.0}, 7, Band.HIGH),
    ],
)
def test_bands_of_the_answer(changed: dict[str, float], total: int, band: Band) -> None:
    # Chart 2: 0 to 4 low; 3 in one part low-medium; 5 to 6 medium; 7 and more high.
    found = score(changed)
    assert (int(found.total), Band(int(found.band))) == (total, band)


def test_every_part_at_its_worst() -> None:
    values = (30.0, 80.0, 1.0, 80.0, 140.0, 0.0, 34.0)
    assert score(dict(zip(USUAL, values, strict=True))).total == 20
    assert score({}).total == 0


@pytest.mark.parametrize(("value", "points"), [(35.04, 3), (35.05, 1), (36.05, 0), (38.04, 0), (38.05, 1), (39.05, 2)])
def test_between_two_charted_values_there_is_no_gap(value: float, points: int) -> None:
    for kind in (np.float32, np.float64):
        assert score({"temperature": kind(value)}).total == points


def test_a_missing_part_is_said_and_counts_nothing() -> None:
    for part in USUAL:
        found = score({"respiratory_rate": 25.0, part: float("nan")})
        assert not found.complete
        known = [points for points in found.parts if points != UNKNOWN]
        assert found.total == sum(known)
    assert score({}).complete


@given(st.lists(st.tuples(*[st.floats(0, 400)] * 4), min_size=1, max_size=20))
def test_a_patient_scores_the_same_alone_and_among_others(rows: list[tuple[float, ...]]) -> None:
    names = ("respiratory_rate", "pulse_oximetry", "systolic_pressure", "heart_rate")
    columns = {name: np.array([row[at] for row in rows]) for at, name in enumerate(names)}
    together = score(columns)
    for at, row in enumerate(rows):
        assert together.total[at] == score(dict(zip(names, row, strict=True))).total


def test_qsofa_sirs_and_shock_index() -> None:
    # Singer 2016, box 4: 22 breaths, 100 mmHg, altered mentation.
    for values, points in (((21, 101, 15), 0), ((22, 101, 15), 1), ((22, 100, 15), 2), ((22, 100, 14), 3)):
        found = score_qsofa(respiratory_rate=values[0], systolic_pressure=values[1], glasgow=values[2])
        assert plain(found) == (points, True)
    # Bone 1992: > 38 or < 36 °C; > 90 beats; > 20 breaths or < 32 mmHg; > 12 or < 4 thousand leukocytes.
    edge: dict[str, float] = {
        "temperature": 38.0,
        "heart_rate": 90,
        "respiratory_rate": 20,
        "arterial_carbon_dioxide": 32,
        "white_cells": 12,
    }
    assert plain(score_sirs(**edge)) == (0, True)
    for changed in (
        {"temperature": 38.1},
        {"temperature": 35.9},
        {"heart_rate": 91},
        {"respiratory_rate": 21},
        {"arterial_carbon_dioxide": 31},
        {"white_cells": 12.1},
        {"white_cells": 3.9},
    ):
        assert plain(score_sirs(**{**edge, **changed})) == (1, True)
    assert not score_sirs(**{**edge, "white_cells": np.nan})[1]
    assert float(shock_index(heart_rate=90, systolic_pressure=100)) == pytest.approx(0.9)
    assert np.isnan(shock_index(heart_rate=90, systolic_pressure=0))
