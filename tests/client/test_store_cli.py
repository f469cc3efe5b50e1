"""The store's commands as a hospital types them: what they do, and that no id of a patient is ever printed."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.store.block_store import open_store
from fedtwin_client.store.sqlite_database import DATABASE
from fedtwin_shared.cli import main
from tests.client.premises import make_premises
from tests.contracts.store_contract import batch_of, everything, stay
from tests.world import make_world


def fedtwin(*arguments: str | Path) -> int:
    """Run the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["client", *map(str, arguments)])
    return int(ended.value.code or 0)


@pytest.fixture
def hospital(tmp_path: Path) -> HospitalDirectory:
    hospital = make_premises(tmp_path / "north", make_world(), patients=2)
    with open_store(hospital.store) as store:
        store.append(batch_of(stay("Ada Lovelace", count=600) + stay("Bo", count=5)))
    return hospital


def test_check_says_what_is_whole_and_what_is_damaged(
    hospital: HospitalDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("store", "check", hospital.root) == 0
    assert capsys.readouterr().out == "whole: 605 observations of 2 patients in 2 blocks\n"
    with sqlite3.connect(hospital.store / DATABASE) as connection:
        connection.execute("UPDATE block SET sealed = x'00' WHERE signal != 0")
    connection.close()
    assert fedtwin("store", "check", hospital.root) == 1
    printed = capsys.readouterr().out
    assert "damaged: 600 observations, signal heart_rate, four hours from 2023-11-14T20:00:00+00:00" in printed
    assert "Ada" not in printed


def test_drop_keeps_what_is_younger(hospital: HospitalDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time_ns() // 1_000_000
    young = [("Bo", "heart_rate", now - hours * 3_600_000, 60.0, "monitor", hours, 0) for hours in range(72)]
    with open_store(hospital.store) as store:
        store.append(batch_of(young))
    assert fedtwin("store", "drop", hospital.root, "--older-than", "2") == 0
    printed = capsys.readouterr().out
    with open_store(hospital.store) as store:
        kept = everything(store)
    assert {row for row in young if row[2] >= now - 48 * 3_600_000} <= set(kept)
    assert 49 <= len(kept) <= 49 + 4
    assert f"dropped: {605 + 72 - len(kept)} observations" in printed


def test_forget_erases_and_prints_no_id(
    hospital: HospitalDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids").write_text("Ada Lovelace\n\nnobody\n")
    hospital.quarantine.write_text("Ada Lovelace")
    assert fedtwin("forget", hospital.root, "--file", tmp_path / "ids", "--yes") == 0
    printed = capsys.readouterr()
    assert "forgotten: 2; of these the store had a key for 1" in printed.out
    assert "Ada" not in printed.out + printed.err
    assert not hospital.quarantine.exists()
    with open_store(hospital.store) as store:
        assert everything(store) == stay("Bo", count=5)
    assert fedtwin("forget", hospital.root, "--patient", "Bo", "--file", tmp_path / "ids") == 2
    assert fedtwin("forget", hospital.root) == 2


def test_nothing_is_forgotten_without_a_yes(
    hospital: HospitalDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("typer.confirm", lambda text: False)
    assert fedtwin("forget", hospital.root, "--patient", "Bo") == 1
    assert "nothing was forgotten" in capsys.readouterr().out
    with open_store(hospital.store) as store:
        assert len(store.read("Bo")) == 5


def test_export_writes_one_patients_bundle(
    hospital: HospitalDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("export", hospital.root, tmp_path / "out.json", "--patient", "Bo") == 0
    assert "5 observations" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["entry"]) == 6
    assert fedtwin("export", hospital.root, tmp_path / "out.json", "--patient", "Bo") == 2
    assert "expected a new file" in capsys.readouterr().err


def test_a_store_that_another_process_has_open_is_named(
    hospital: HospitalDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(hospital.store):
        assert fedtwin("forget", hospital.root, "--patient", "Bo", "--yes") == 2
    assert "expected no other process with this store" in capsys.readouterr().err
