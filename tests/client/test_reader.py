"""A hospital's files: what is accepted, what is quarantined and why, and that nothing is lost between the two."""

from __future__ import annotations

import csv
import logging
import os
import stat
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.errors import DataError
from fedtwin_client.quarantine import COLUMNS, Reason
from fedtwin_client.reader import HospitalRecords, read_hospital
from tests.client.small import ADMITTED, Row, observation, patient, write_folder

ANNA, BEN = patient("anna", age=70, sex="female", died=0), patient("ben", age=50, sex="male", died=1)
GOOD = observation("anna", 1, 80)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def tally(records: HospitalRecords, file: str, what: str = "rows") -> Mapping[Reason, int]:
    return next(one.quarantined for one in records.tallies if one.file == file and one.what == what)


def contents(records: HospitalRecords) -> list[object]:
    patients, observations = records.patients, records.observations
    columns = (observations.patient, observations.signal, observations.time, observations.value)
    facts = [*patients.numbers.values(), *patients.levels.values(), *patients.outcomes.values()]
    return [patients.ids, patients.admitted.tolist(), *map(str, facts), *(column.tolist() for column in columns)]


def test_accepts_a_good_folder(tmp_path: Path) -> None:
    records = read_hospital(write_folder(tmp_path, [BEN, ANNA], [GOOD, observation("ben", 2.5, 90.5)]))
    assert records.patients.ids == ("anna", "ben")
    assert records.patients.numbers["age"].tolist() == [70.0, 50.0]
    assert records.patients.levels["sex"].tolist() == [0, 1]
    assert records.patients.outcomes["died"].tolist() == [0.0, 1.0]
    assert records.observations.value.tolist() == [80.0, 90.5]
    assert all(not one.quarantined for one in records.tallies)
    found = list(records.observations.of(records.patients, "ben"))
    assert [(one.patient, one.signal, one.value) for one in found] == [("ben", "heart_rate", 90.5)]
    assert found[0].time.isoformat() == "2024-03-01T10:30:00+00:00"


def test_facts_alone_are_enough(tmp_path: Path) -> None:
    assert len(read_hospital(write_folder(tmp_path, [ANNA])).observations) == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (observation("carl", 1, 80), Reason.UNKNOWN_PATIENT),
        (observation("", 1, 80), Reason.UNKNOWN_PATIENT),
        (observation("anna", 1, 80, signal="aura"), Reason.UNKNOWN_SIGNAL),
        (observation("anna", 1, 80, unit="bpm"), Reason.UNKNOWN_UNIT),
        (observation("anna", 1, 80, unit=""), Reason.UNKNOWN_UNIT),
        (observation("anna", 1, 5.0, signal="glucose", unit="mmol/l"), Reason.UNKNOWN_UNIT),
        (observation("anna", 1, 5.0, signal="sodium", unit="mg/dL"), Reason.UNKNOWN_UNIT),
        (observation("anna", 1, 900), Reason.IMPLAUSIBLE),
        (observation("anna", 1, 0), Reason.IMPLAUSIBLE),
        (observation("anna", 1, 98.6, signal="temperature", unit="Cel"), Reason.IMPLAUSIBLE),
        (observation("anna", 1, "nan"), Reason.NOT_A_NUMBER),
        (observation("anna", 1, "inf"), Reason.NOT_A_NUMBER),
        (observation("anna", 1, "1e999"), Reason.NOT_A_NUMBER),
        (observation("anna", 1, "80,5"), Reason.NOT_A_NUMBER),
        (observation("anna", 1, "high"), Reason.NOT_A_NUMBER),
        (observation("anna", 1, ""), Reason.NOT_A_NUMBER),
        (observation("anna", 1, 80, time="yesterday"), Reason.TIME_UNREADABLE),
        (observation("anna", 1, 80, time=""), Reason.TIME_UNREADABLE),
        (observation("anna", 1, 80, time="2024-02-30T08:00:00Z"), Reason.TIME_UNREADABLE),
        (observation("anna", 1, 80, time="2024-03-01T09:00:00"), Reason.TIME_WITHOUT_ZONE),
        (observation("anna", 1, 80, time="2024-03-01"), Reason.TIME_WITHOUT_ZONE),
        (observation("anna", -31 * 24, 80), Reason.OUTSIDE_STAY),
        (observation("anna", 367 * 24, 80), Reason.OUTSIDE_STAY),
    ],
)
def test_one_bad_observation(tmp_path: Path, row: Row, reason: Reason) -> None:
    quarantine = tmp_path / "quarantine.csv"
    records = read_hospital(write_folder(tmp_path / "data", [ANNA], [GOOD, row]), quarantine=quarantine)
    assert tally(records, "observations.csv") == {reason: 1}
    assert records.observations.value.tolist() == [80.0]
    (written,) = read_rows(quarantine)
    assert (written["file"], written["row"], written["reason"]) == ("observations.csv", "2", reason)
    assert {name: written[name] for name in row} == {name: str(found) for name, found in row.items()}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"age": 900}, Reason.IMPLAUSIBLE),
        ({"age": "old"}, Reason.NOT_A_NUMBER),
        ({"age": "inf"}, Reason.NOT_A_NUMBER),
        ({"sex": "F"}, Reason.UNKNOWN_LEVEL),
        ({"died": 2}, Reason.NOT_ZERO_OR_ONE),
        ({"died": "yes"}, Reason.NOT_ZERO_OR_ONE),
        ({"part": "validation"}, Reason.NOT_TRAIN_OR_TEST),
    ],
)
def test_one_impossible_fact_leaves_its_patient(tmp_path: Path, cells: Mapping[str, object], reason: Reason) -> None:
    quarantine = tmp_path / "quarantine.csv"
    rows = [{"part": "train", **ANNA}, {"part": "train", **BEN, **cells}]
    records = read_hospital(write_folder(tmp_path / "data", rows), quarantine=quarantine)
    assert records.patients.ids == ("anna", "ben")
    assert tally(records, "patients.csv") == {}
    assert tally(records, "patients.csv", "cells") == {reason: 1}
    (written,) = read_rows(quarantine)
    ((name, value),) = cells.items()
    assert (written["patient"], written["signal"], written["value"]) == ("ben", name, str(value))
    patients = records.patients
    now = {**patients.numbers, **patients.outcomes}
    assert np.isnan(now[name][1]) if name in now else name == "part" or patients.levels[name][1] == -1
    assert patients.part == ("train", "" if name == "part" else "train")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (patient("", age=1), Reason.PATIENT_MISSING),
        (patient("carl", age=1, admitted="2024-03-01 08:00"), Reason.TIME_WITHOUT_ZONE),
        (patient("carl", age=1, admitted="soon"), Reason.TIME_UNREADABLE),
    ],
)
def test_one_bad_patient(tmp_path: Path, row: Row, reason: Reason) -> None:
    records = read_hospital(write_folder(tmp_path, [ANNA, row], [observation("carl", 1, 80)]))
    assert records.patients.ids == ("anna",)
    assert tally(records, "patients.csv") == {reason: 1}
    assert tally(records, "observations.csv") == {Reason.UNKNOWN_PATIENT: 1}


def test_same_row_again_stays_once_and_different_rows_all_go(tmp_path: Path) -> None:
    rows = [GOOD, GOOD, observation("anna", 2, 70), observation("anna", 2, 71), GOOD, observation("anna", 3, 60)]
    records = read_hospital(write_folder(tmp_path, [ANNA], rows))
    assert records.observations.value.tolist() == [80.0, 60.0]
    assert tally(records, "observations.csv") == {Reason.DUPLICATE: 2, Reason.CONFLICT: 2}


def test_a_bad_row_does_not_condemn_a_good_one(tmp_path: Path) -> None:
    records = read_hospital(write_folder(tmp_path, [ANNA], [GOOD, observation("anna", 1, 900)]))
    assert records.observations.value.tolist() == [80.0]


def test_same_patient_again_stays_once_and_different_rows_all_go(tmp_path: Path) -> None:
    rows = [ANNA, ANNA, BEN, {**BEN, "age": 51}]
    records = read_hospital(write_folder(tmp_path, rows))
    assert records.patients.ids == ("anna",)
    assert tally(records, "patients.csv") == {Reason.DUPLICATE: 1, Reason.CONFLICT: 2}


def test_converts_units(tmp_path: Path) -> None:
    rows = [
        observation("anna", 1, 98.6, signal="temperature", unit="[degF]"),
        observation("anna", 2, 5.55, signal="glucose", unit="mmol/L"),
        observation("anna", 3, "0.21", signal="inspired_oxygen", unit="1"),
    ]
    records = read_hospital(write_folder(tmp_path, [ANNA], rows))
    found = {one.signal: one.value for one in records.observations.of(records.patients, "anna")}
    assert found == pytest.approx({"temperature": 37.0, "glucose": 99.987, "inspired_oxygen": 21.0}, abs=1e-3)


@pytest.mark.parametrize("time", ["2024-03-01T09:00:00Z", "2024-03-01T10:00:00+01:00", "2024-03-01 09:00Z"])
def test_instants_with_a_zone_are_one_instant(tmp_path: Path, time: str) -> None:
    records = read_hospital(write_folder(tmp_path, [ANNA], [observation("anna", 1, 80, time=time)]))
    (found,) = records.observations.of(records.patients, "anna")
    assert found.time.isoformat() == "2024-03-01T09:00:00+00:00"


def test_a_row_with_a_wrong_number_of_fields(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [ANNA], [GOOD, observation("anna", 2, 81)])
    path = folder / "observations.csv"
    first, second, third = path.read_text().splitlines()
    path.write_text(f"{first}\n{second}\n\nanna,2024\n{third},more\n{third}\n")
    records = read_hospital(folder, quarantine=tmp_path / "quarantine.csv")
    assert tally(records, "observations.csv") == {Reason.MALFORMED_ROW: 2}
    assert records.observations.value.tolist() == [80.0, 81.0]
    assert [row["row"] for row in read_rows(tmp_path / "quarantine.csv")] == ["2", "3"]


def test_an_open_quote_swallows_no_other_row(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [ANNA], [GOOD, observation("anna", 2, 81), observation("anna", 3, 900)])
    path = folder / "observations.csv"
    header, *lines = path.read_text().splitlines()
    lines.insert(1, lines[0].replace("anna", '"anna'))
    lines[0] = lines[0].replace("anna", '"anna"')
    path.write_text("\n".join([header, *lines]))
    records = read_hospital(folder, quarantine=tmp_path / "quarantine.csv")
    assert tally(records, "observations.csv") == {Reason.MALFORMED_ROW: 1, Reason.IMPLAUSIBLE: 1}
    assert records.observations.value.tolist() == [80.0, 81.0]
    written = {row["reason"]: row["row"] for row in read_rows(tmp_path / "quarantine.csv")}
    assert written == {Reason.MALFORMED_ROW: "2", Reason.IMPLAUSIBLE: "4"}


@pytest.mark.parametrize("value", ["8\r1", "\r81", '"8\r1"', "81\r\r"])
def test_a_carriage_return_inside_a_row_costs_that_row_only(tmp_path: Path, value: str) -> None:
    folder = write_folder(tmp_path / "data", [ANNA], [GOOD])
    path = folder / "observations.csv"
    path.write_bytes(path.read_bytes() + f"anna,2024-03-01T10:00:00Z,heart_rate,70,{value}\r\n".encode())
    records = read_hospital(folder, quarantine=tmp_path / "quarantine.csv")
    assert tally(records, "observations.csv") == {Reason.MALFORMED_ROW: 1}
    assert records.observations.value.tolist() == [80.0]


@pytest.mark.parametrize("column", ["patient", "time", "signal", "value", "unit"])
def test_a_missing_column_of_observations_is_counted_and_not_fatal(tmp_path: Path, column: str) -> None:
    rows = [{name: value for name, value in GOOD.items() if name != column}] * 3
    quarantine = tmp_path / "quarantine.csv"
    records = read_hospital(write_folder(tmp_path / "data", [ANNA], rows), quarantine=quarantine)
    assert tally(records, "observations.csv") == {Reason.MISSING_COLUMN: 3}
    written = read_rows(quarantine)
    assert [row["row"] for row in written] == ["1", "2", "3"]
    assert all(row["signal"] == column for row in written)


@pytest.mark.parametrize("column", ["patient", "admitted"])
def test_a_missing_column_of_patients_is_counted_and_not_fatal(tmp_path: Path, column: str) -> None:
    rows = [{name: value for name, value in row.items() if name != column} for row in (ANNA, BEN)]
    records = read_hospital(write_folder(tmp_path, rows, [GOOD]))
    assert tally(records, "patients.csv") == {Reason.MISSING_COLUMN: 2}
    assert tally(records, "observations.csv") == {Reason.UNKNOWN_PATIENT: 1}
    assert len(records.patients) == 0


SECRET = "Ludwig-Maximilian-Berger"
UNREADABLE: dict[str, bytes] = {
    "empty.csv": b"",
    "latin1.csv": f"patient,admitted\n{SECRET}\xe4,{ADMITTED}\n".encode("latin-1"),
    "headless.csv": f"{SECRET},{SECRET}\n".encode(),
    "open_quote.csv": f'"{SECRET},admitted\n'.encode(),
    "text.parquet": f"{SECRET} is no parquet file".encode(),
}


@pytest.mark.parametrize("name", sorted(UNREADABLE))
@pytest.mark.parametrize("stem", ["patients", "observations"])
def test_an_unreadable_file_is_fatal_and_tells_nothing_of_it(
    tmp_path: Path, name: str, stem: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"{stem}{Path(name).suffix}"
    if stem == "observations":
        write_folder(tmp_path, [ANNA])
    path.write_bytes(UNREADABLE[name])
    with caplog.at_level(logging.DEBUG), pytest.raises(DataError) as caught:
        read_hospital(tmp_path)
    assert caught.value.file == str(path)
    assert all((caught.value.expected, caught.value.found))
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


def test_nested_columns_are_unreadable(tmp_path: Path) -> None:
    pd.DataFrame({"patient": [["anna"]], "admitted": [ADMITTED]}).to_parquet(tmp_path / "patients.parquet")
    with pytest.raises(DataError, match="plain columns"):
        read_hospital(tmp_path)


def test_no_patients_file_or_two_of_them_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found neither"):
        read_hospital(tmp_path)
    write_folder(tmp_path, [ANNA])
    write_folder(tmp_path, [ANNA], suffix="parquet")
    with pytest.raises(DataError, match="found both"):
        read_hospital(tmp_path)


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    patients = [{**ANNA, "age": 70.0}, {**BEN, "age": None}]
    rows = [{**GOOD, "value": 80.5}, {**observation("ben", 1, 0), "value": 900.0}, observation("ben", 2, 77)]
    typed = tmp_path / "typed"
    write_folder(typed, patients, rows, suffix="parquet")
    as_typed = pd.read_parquet(typed / "observations.parquet")
    as_typed["time"] = pd.to_datetime(as_typed["time"])
    as_typed["signal"] = as_typed["signal"].astype("category")
    as_typed.to_parquet(typed / "observations.parquet")
    assert contents(read_hospital(typed)) == contents(read_hospital(write_folder(tmp_path / "text", patients, rows)))


def test_parquet_timestamps_without_a_zone_are_quarantined(tmp_path: Path) -> None:
    table = pd.DataFrame([GOOD]).assign(time=pd.Timestamp("2024-03-01T09:00:00"))
    write_folder(tmp_path, [ANNA])
    table.to_parquet(tmp_path / "observations.parquet")
    assert tally(read_hospital(tmp_path), "observations.parquet") == {Reason.TIME_WITHOUT_ZONE: 1}


def test_the_quarantine_file_is_the_hospitals_own_and_never_stale(tmp_path: Path) -> None:
    quarantine = tmp_path / "own" / "quarantine.csv"
    previous = os.umask(0)
    try:
        read_hospital(write_folder(tmp_path / "a", [ANNA], [observation("anna", 1, 900)]), quarantine=quarantine)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(quarantine.stat().st_mode) == 0o600
    assert stat.S_IMODE(quarantine.parent.stat().st_mode) == 0o700
    assert len(read_rows(quarantine)) == 1
    read_hospital(write_folder(tmp_path / "b", [ANNA], [GOOD]), quarantine=quarantine)
    assert quarantine.read_text().replace('"', "").strip() == ",".join(COLUMNS)
    assert os.listdir(quarantine.parent) == ["quarantine.csv"]


def test_records_show_no_patient_and_no_value(tmp_path: Path) -> None:
    records = read_hospital(write_folder(tmp_path, [ANNA], [observation("anna", 1, 81.25)]))
    (one,) = records.observations.of(records.patients, "anna")
    shown = f"{records!r}{records.patients!r}{records.observations!r}{one!r}{one}"
    assert "anna" not in shown
    assert "81.25" not in shown


NAMES = st.sampled_from(["anna", "ben", "carl", ""])
VALUES = st.sampled_from(["80", "81", "900", "nan", "", "x", "1e2"])
TIMES = st.sampled_from(["2024-03-01T09:00:00Z", "2024-03-01T09:30:00Z", "2024-03-01T09:00:00", "then", ""])
DIRTY = st.fixed_dictionaries(
    {
        "patient": NAMES,
        "time": TIMES,
        "signal": st.sampled_from(["heart_rate", "glucose", "mood"]),
        "value": VALUES,
        "unit": st.sampled_from(["/min", "mg/dL", "mmol/L", "?"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(DIRTY, min_size=1, max_size=30), data=st.data())
def test_nothing_is_lost_and_order_means_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], data: st.DataObject
) -> None:
    shuffled: Sequence[dict[str, Any]] = data.draw(st.permutations(rows))
    folder = tmp_path_factory.mktemp("order")
    quarantine = folder / "quarantine.csv"
    one = read_hospital(write_folder(folder / "one", [ANNA, BEN], rows), quarantine=quarantine)
    other = read_hospital(write_folder(folder / "other", [BEN, ANNA], shuffled))
    assert contents(one) == contents(other)
    assert [found.quarantined for found in one.tallies] == [found.quarantined for found in other.tallies]
    of_rows = one.tallies[-1]
    assert of_rows.total == len(rows)
    assert of_rows.accepted == len(one.observations)
    assert of_rows.accepted + len(read_rows(quarantine)) == of_rows.total


# No line breaks: a field of this format has none, and a file is read line by line.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)
NOISE = st.fixed_dictionaries(
    {
        name: st.one_of(TEXT, st.sampled_from(["anna", "heart_rate", "80"]))
        for name in ("patient", "time", "signal", "value", "unit")
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(NOISE, min_size=1, max_size=8), facts=st.lists(TEXT, min_size=4, max_size=4))
def test_any_text_is_read_without_a_failure(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], facts: list[str]
) -> None:
    strange = dict(zip(("age", "sex", "died", "part"), facts, strict=True))
    folder = write_folder(tmp_path_factory.mktemp("noise"), [ANNA | strange, BEN], rows)
    records = read_hospital(folder, quarantine=folder / "quarantine.csv")
    assert "anna" in records.patients.ids
    assert [one.total for one in records.tallies] == [2, 8, len(rows)]
    assert records.tallies[-1].accepted == len(records.observations)


def test_a_header_alone_is_an_empty_hospital(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("patient,admitted,age,sex,died\n")
    (tmp_path / "observations.csv").write_text("patient,time,signal,value,unit\n")
    records = read_hospital(tmp_path)
    assert (len(records.patients), len(records.observations)) == (0, 0)
    assert [one.total for one in records.tallies] == [0, 0, 0]


def test_a_quarantine_that_cannot_be_written_is_our_own_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", [ANNA])
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="expected a place to write the quarantine"):
        read_hospital(folder, quarantine=tmp_path / "taken" / "quarantine.csv")
