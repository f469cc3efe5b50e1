"""A hospital's directory with `witnesses.toml`: from its commands to what its coordinator accepts, over HTTP."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import ledger_key, note_conformance
from fedtwin_client.installation import open_installation
from fedtwin_client.journal import JournalError, WitnessesAwayError
from fedtwin_client.ledger_journal import LEDGER
from fedtwin_client.ledger_mark import MARK_FILE
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import Conformance
from fedtwin_shared.ledger.evidence import parse_evidence
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.ledger.witness_client import HistoryError
from fedtwin_shared.ledger.witness_store import WitnessStore
from fedtwin_shared.ledger.witnesses import WITNESSES
from fedtwin_shared.models import initialise
from tests.client.premises import make_premises, write_study
from tests.client.test_hospital_ledger import begin, fedtwin, plan_of
from tests.world import World, make_world


@contextmanager
def serving(store: WitnessStore) -> Iterator[str]:
    """The store's answers over HTTP, on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the library calls
            answer = store.add_checkpoint(self.rfile.read(int(self.headers["Content-Length"])), clock=lambda: 1)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.media_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World) -> HospitalDirectory:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    begin(directory)
    return directory


@pytest.fixture
def store(tmp_path: Path, directory: HospitalDirectory) -> Iterator[WitnessStore]:
    log = ledger_key(directory)
    store = WitnessStore.create(tmp_path / "witness.sqlite", name="keeper/witness", logs={log.name: log})
    with serving(store) as address:
        line = f'faulty = 0\n[[witness]]\nkey = "{store.verifier_key}"\naddress = "{address}"\n'
        (directory.root / WITNESSES).write_text(line, encoding="utf-8")
        yield store


def test_a_hospitals_node_has_its_ledger_cosigned(
    directory: HospitalDirectory, world: World, store: WitnessStore, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = ledger_key(directory).name
    note_conformance(directory, b"a report", passed=True)
    installed = open_installation(directory)
    opened = store.latest(origin)
    assert opened is not None
    assert opened.size == 3  # policy, epoch and the conformance run, before any task
    *_, evidence = installed.hospital.answer(plan_of(world), initialise(world.study))
    installed.journal.close()
    proven = parse_evidence(evidence)
    assert parse_checkpoint(parse_note(proven.note).text) == store.latest(origin)
    assert fedtwin("checkpoint", directory.root) == 0
    assert f"{origin}: 9 entries cosigned" in capsys.readouterr().out
    with LogReader(directory.ledger / LEDGER) as log:
        entries = [parse_entry(data) for data in log.entries()]
    assert [entry.outcome for entry in entries if isinstance(entry, Conformance)] == ["passed"]


def test_a_restored_ledger_does_not_open(
    tmp_path: Path, directory: HospitalDirectory, world: World, store: WitnessStore
) -> None:
    shutil.copytree(directory.ledger, tmp_path / "backup")
    installed = open_installation(directory)
    installed.hospital.answer(plan_of(world), initialise(world.study))
    installed.journal.close()
    shutil.rmtree(directory.ledger)
    shutil.copytree(tmp_path / "backup", directory.ledger)
    with pytest.raises(JournalError, match="witness"):
        open_installation(directory)
    assert fedtwin("checkpoint", directory.root) == 2


def test_a_backup_of_a_cosigned_checkpoint_does_not_open(
    tmp_path: Path,
    directory: HospitalDirectory,
    world: World,
    store: WitnessStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fedtwin("checkpoint", directory.root) == 0
    shutil.copytree(directory.ledger, tmp_path / "backup")  # all of it is cosigned
    installed = open_installation(directory)
    installed.hospital.answer(plan_of(world), initialise(world.study))
    installed.journal.close()
    shutil.rmtree(directory.ledger)
    shutil.copytree(tmp_path / "backup", directory.ledger)
    with pytest.raises(JournalError, match="a restored backup"):
        open_installation(directory)
    assert fedtwin("checkpoint", directory.root) == 2
    assert "a restored backup" in capsys.readouterr().err
    assert not store.evidence()  # an honest note that was cosigned: anybody can post it again


def test_a_ledger_opens_while_its_witnesses_are_away(directory: HospitalDirectory, world: World) -> None:
    store = WitnessStore.create(directory.root / "w.sqlite", name="keeper/witness", logs={})
    line = f'faulty = 0\n[[witness]]\nkey = "{store.verifier_key}"\naddress = "http://127.0.0.1:9"\n'
    (directory.root / WITNESSES).write_text(line, encoding="utf-8")
    installed = open_installation(directory)
    _, arrays, evidence = installed.hospital.answer(plan_of(world), initialise(world.study))
    installed.journal.close()
    assert (arrays, evidence) == ({}, b"")
    assert fedtwin("checkpoint", directory.root) == 2


def test_a_witnessed_ledger_needs_its_witnesses(
    directory: HospitalDirectory, store: WitnessStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("checkpoint", directory.root) == 0
    (directory.root / WITNESSES).unlink()
    for command in ("check", "run", "checkpoint"):
        capsys.readouterr()
        assert fedtwin(command, directory.root) == 2
        assert "the witnesses that cosigned this ledger" in capsys.readouterr().err.replace("\n", " ")
    with pytest.raises(JournalError, match="witnesses that cosigned"):
        open_installation(directory)


def test_a_ledger_that_nobody_watches_is_said(directory: HospitalDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedtwin("check", directory.root) == 0
    assert "nobody sees this ledger grow" in capsys.readouterr().out.replace("\n", " ")


def test_witnesses_without_a_ledger_are_said(tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    store = WitnessStore.create(tmp_path / "w.sqlite", name="keeper/witness", logs={})
    line = f'faulty = 0\n[[witness]]\nkey = "{store.verifier_key}"\naddress = "http://127.0.0.1:9"\n'
    (directory.root / WITNESSES).write_text(line, encoding="utf-8")
    assert fedtwin("check", directory.root) == 0
    assert "no ledger that they could see" in capsys.readouterr().out.replace("\n", " ")
    assert fedtwin("status", directory.root) == 0
    assert "no ledger that they could see" in capsys.readouterr().err.replace("\n", " ")
    # Who begins a ledger must hear from them that there was none.
    with pytest.raises(WitnessesAwayError):
        begin(directory)
    assert not directory.ledger.exists()


def test_a_ledger_that_witnesses_know_is_not_begun_anew(
    directory: HospitalDirectory, store: WitnessStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedtwin("checkpoint", directory.root) == 0
    shutil.rmtree(directory.ledger)
    (directory.root / MARK_FILE).unlink(missing_ok=True)  # whoever deletes a ledger may delete this too
    with pytest.raises(HistoryError, match=r"no ledger of this hospital yet, found one with 2 entries"):
        begin(directory)
    assert not directory.ledger.exists()


def test_witnesses_that_know_no_ledger_let_one_begin(
    tmp_path: Path, directory: HospitalDirectory, store: WitnessStore
) -> None:
    shutil.rmtree(directory.ledger)
    (directory.root / MARK_FILE).unlink(missing_ok=True)
    begin(directory)
    assert fedtwin("checkpoint", directory.root) == 0


def test_without_witnesses_there_is_no_checkpoint(directory: HospitalDirectory) -> None:
    assert open_gate(directory).site == "north"
    assert fedtwin("checkpoint", directory.root) == 2


def test_a_hospital_may_run_a_witness(
    tmp_path: Path, directory: HospitalDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "w").mkdir()
    settings = f'name = "north/witness"\nlisten = "127.0.0.1:9"\nlogs = ["{ledger_key(directory)}"]\n'
    (tmp_path / "w" / "witness.toml").write_text(settings, encoding="utf-8")
    assert fedtwin("witness", tmp_path / "w", "--new") == 0
    assert "an auditor pin: north/witness+" in capsys.readouterr().out
    assert fedtwin("witness", tmp_path / "w", "--new") == 2  # never a second memory under one name
