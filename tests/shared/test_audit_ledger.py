"""`fedtwin audit bundle` and `verify` as an auditor runs them: exit codes, numbered reasons, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from fedtwin_shared.cli import main
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.store import KeptNote, LogWriter, NewEntry
from tests.shared.ledger.forge import DOCUMENT, GOLDEN, note_of, write_book

KEYS = GOLDEN / "pinned-keys.json"
ATTACKS = sorted(file.stem for file in GOLDEN.glob("*.zip") if not file.stem.startswith("honest"))


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, arguments)])
    return int(ended.value.code or 0)


def test_a_ledger_of_the_study_that_lies_with_it_ends_with_0() -> None:
    assert run("verify", GOLDEN / "honest-with-study.zip", "--keys", KEYS) == 0


def test_an_honest_bundle_ends_with_0_and_says_what_it_proves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", GOLDEN / "honest.zip", "--keys", KEYS, "--json") == 0
    statement = json.loads(capsys.readouterr().out)
    assert statement["holds"] is True
    north = statement["ledgers"]["north"]
    assert (north["entries"], north["unit"], north["claim"]["epsilon"]) == (18, "patient", "8")
    assert len(north["cosigned"]) == 4
    trained = [block for name, block in north["blocks"].items() if name.endswith(".train")]
    untouched = [block for name, block in north["blocks"].items() if not name.endswith(".train")]
    assert all(float(block["epsilon"]) > 0 and 0 < float(block["spent_share"]) < 1 for block in trained)
    assert all(block["epsilon"] == "0" for block in untouched)
    assert trained
    assert untouched
    assert run("verify", GOLDEN / "honest.zip", "--keys", KEYS) == 0
    assert "everything holds" in capsys.readouterr().out


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_with_1_and_a_numbered_list(attack: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", GOLDEN / f"{attack}.zip", "--keys", KEYS) == 1
    shown = capsys.readouterr()
    assert re.match(r"[a-z-]+\.zip: does not hold\n1\. \S", shown.out)
    assert shown.err == ""
    assert run("verify", GOLDEN / f"{attack}.zip", "--keys", KEYS, "--json") == 1
    assert json.loads(capsys.readouterr().out)["failed"]


@pytest.mark.parametrize("data", [b"", b"PK", b"\x00" * 1000, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_bundle_ends_with_1(data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle.zip").write_bytes(data)
    assert run("verify", tmp_path / "bundle.zip", "--keys", KEYS) == 1
    assert "\n1. bundle: " in capsys.readouterr().out


def test_the_auditor_s_own_mistakes_end_with_2_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys.json").write_text("{}")
    for bundle, keys in [(tmp_path / "absent.zip", KEYS), (GOLDEN / "honest.zip", tmp_path / "keys.json")]:
        assert run("verify", bundle, "--keys", keys) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_ledger_is_exported_as_of_its_checkpoint_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = write_book(3)
    (tmp_path / "policy").write_bytes(DOCUMENT)
    with LogWriter(tmp_path / "ledger.sqlite") as log:
        log.append([NewEntry(key=parse_entry(body).key, kind=parse_entry(body).TYPE, body=body) for body in entries])
        log.keep_note(KeptNote(note=note_of(entries[:13])))
        options = ("--log", f"north={tmp_path / 'ledger.sqlite'}", "--document", tmp_path / "policy")
        assert run("bundle", tmp_path / "bundle.zip", *options) == 0  # beside its writer
    assert run("verify", tmp_path / "bundle.zip", "--keys", KEYS, "--json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown[shown.index("{") :])["ledgers"]["north"]["entries"] == 13


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LogWriter(tmp_path / "empty.sqlite").close()
    shutil.copy(KEYS, tmp_path / "no-ledger")
    for option in (
        "north",
        f"north={tmp_path}/absent",
        f"north={tmp_path}/empty.sqlite",
        f"north={tmp_path}/no-ledger",
    ):
        assert run("bundle", tmp_path / "bundle.zip", "--log", option) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "bundle.zip").exists()
