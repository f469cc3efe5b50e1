from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_shared.ledger.database import LedgerError, connect
from fedtwin_shared.ledger.merkle import compute_root, hash_leaf, verify_consistency, verify_inclusion
from fedtwin_shared.ledger.note import Checkpoint, format_note, sign_note
from fedtwin_shared.ledger.store import MAX_ENTRY_BYTES, KeptNote, LogReader, LogWriter, NewEntry
from tests.shared.ledger.hospital_log import LOG, LOG_KEY, entries_of, signed_note
from tests.soak import SOAK

KILLS = 1000 if SOAK else 24


def named(size: int, *, start: int = 0) -> list[NewEntry]:
    return [
        NewEntry(key=f"study/{index}", kind="reserve", body=body)
        for index, body in list(enumerate(entries_of(size)))[start:]
    ]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    with LogWriter(tmp_path / "ledger.sqlite") as opened:
        yield opened


def check_log(reader: LogReader) -> None:
    """The whole log from its bytes: root, stored subtrees, names. Every test of a disturbed log ends with this."""
    entries = list(reader.entries())
    assert len(entries) == reader.size
    assert reader.root() == compute_root(entries)
    for position, body in enumerate(entries):
        proof = reader.prove_inclusion(position, reader.size)
        verify_inclusion(hash_leaf(body), index=position, size=reader.size, proof=proof, root=reader.root())


def test_a_new_log_is_empty(writer: LogWriter) -> None:
    assert (writer.size, writer.root(), writer.latest_note()) == (0, compute_root([]), None)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 9), max_size=6))
def test_entries_keep_their_order_whatever_the_batches(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "ledger.sqlite"
    total = 0
    with LogWriter(path) as log:
        for batch in batches:
            assert log.append(named(total + batch, start=total)) == tuple(range(total, total + batch))
            total += batch
        check_log(log)
        assert list(log.entries()) == entries_of(total)
    with LogReader(path) as reader:
        check_log(reader)
        for old in range(total + 1):
            verify_consistency(
                old=old,
                old_root=reader.root(old),
                size=total,
                root=reader.root(),
                proof=reader.prove_consistency(old, total),
            )


def test_the_same_bytes_under_one_name_are_the_same_entry(writer: LogWriter) -> None:
    assert writer.append(named(3)) == (0, 1, 2)
    assert writer.append(named(4, start=2)) == (2, 3)
    assert writer.append([*named(5, start=4), *named(5, start=4)]) == (4, 4)  # also twice in one batch
    assert list(writer.entries()) == entries_of(5)
    assert writer.find("study/2", "reserve") == 2
    assert writer.find("study/2", "start") is None


def test_other_bytes_under_one_name_are_refused_and_nothing_is_appended(writer: LogWriter) -> None:
    writer.append(named(2))
    with pytest.raises(LedgerError, match="reserve study/1"):
        writer.append([*named(3, start=2), NewEntry(key="study/1", kind="reserve", body=b"other")])
    assert list(writer.entries()) == entries_of(2)
    writer.append([NewEntry(key="study/1", kind="start", body=b"other")])  # another kind is another name
    check_log(writer)


def test_an_entry_that_is_too_long_is_refused(writer: LogWriter) -> None:
    with pytest.raises(LedgerError, match="at most"):
        writer.append([NewEntry(key="a", kind="b", body=bytes(MAX_ENTRY_BYTES + 1))])
    assert writer.size == 0


def test_a_second_writer_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with LogWriter(path) as first:
        first.append(named(1))
        with pytest.raises(LedgerError, match="another writer"):
            LogWriter(path)
        program = (
            "import sys\nfrom pathlib import Path\nfrom fedtwin_shared.ledger.store import KeptNote, LogWriter\n"
            "from fedtwin_shared.errors import FedtwinError\n"
            "try:\n    LogWriter(Path(sys.argv[1]))\nexcept FedtwinError as error:\n    sys.exit(str(error))\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "another writer" in done.stderr
        with LogReader(path) as reader:  # reading beside the writer is allowed
            assert reader.size == 1
            first.append(named(2))
            assert reader.size == 2
    with LogWriter(path) as second:
        assert second.size == 2


def test_a_checkpoint_is_kept_only_of_this_tree(writer: LogWriter) -> None:
    writer.append(named(5))
    for size in (3, 5):
        writer.keep_note(KeptNote(note=signed_note(entries_of(size))))
    assert writer.latest_note() == signed_note(entries_of(5))
    for wrong in (entries_of(6), entries_of(4, story="other")):
        with pytest.raises(LedgerError, match="another tree"):
            writer.keep_note(KeptNote(note=signed_note(wrong)))
    text = Checkpoint(origin=LOG.name, size=5, root=writer.root()).text
    cosigned = format_note(text, [sign_note(text, name=LOG.name, key=LOG_KEY)] * 2)
    writer.keep_note(KeptNote(note=cosigned, witnessed={"w": 5}))
    assert writer.latest_note() == cosigned
    assert (writer.witnessed_size("w"), writer.witnessed_size("x")) == (5, 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM entry WHERE position = 4", "another tree"),
        ("UPDATE entry SET body = x'00' WHERE position = 4", "its own hash"),
        ("UPDATE entry SET hashes = substr(hashes, 1, 64) WHERE position = 3", "subtree 2/0"),
        ("UPDATE entry SET hashes = zeroblob(96) WHERE position = 3", "another tree"),
        ("DROP TABLE entry", "no such table"),
    ],
)
def test_a_damaged_log_does_not_open(tmp_path: Path, damage: str, message: str) -> None:
    path = tmp_path / "ledger.sqlite"
    with LogWriter(path) as log:
        log.append(named(5))
        log.keep_note(KeptNote(note=signed_note(entries_of(5))))
    connection = sqlite3.connect(path)
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match=message):
        LogWriter(path)
    with pytest.raises(LedgerError, match=message):  # the lock was let go
        LogWriter(path)


def test_a_file_that_is_no_ledger_does_not_open(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(LedgerError, match="found none"):
        LogReader(path)
    path.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        LogWriter(path)


def test_a_log_of_another_version_says_so(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    LogWriter(path).close()
    connection = sqlite3.connect(path)
    connection.executescript("ALTER TABLE entry RENAME COLUMN hashes TO hash; PRAGMA user_version = 1")
    connection.close()
    for opened in (LogReader, LogWriter):
        with pytest.raises(LedgerError, match=r"another version of fedtwin.*expected tables of version 2, found 1"):
            opened(path)


class Failing(sqlite3.Connection):
    """Commits that fail: before the disk has them, or after."""

    persist = False
    armed = False

    def execute(self, sql: str, parameters: object = (), /) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.armed:
            if self.persist:
                super().execute(sql)
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, parameters)  # type: ignore[arg-type]  # as it was given


@pytest.mark.parametrize("persist", [False, True], ids=["failed, not persisted", "failed, persisted"])
def test_after_a_failed_commit_the_writer_refuses_until_opened_anew(tmp_path: Path, persist: bool) -> None:
    path = tmp_path / "ledger.sqlite"
    opened: list[Failing] = []

    def failing(file: Path) -> sqlite3.Connection:
        opened.append(sqlite3.connect(file, isolation_level=None, factory=Failing))
        return opened[0]

    LogWriter(path).close()
    with LogWriter(path, connect=failing) as log:
        log.append(named(2))
        opened[0].persist, opened[0].armed = persist, True
        with pytest.raises(LedgerError, match="disk I/O error"):
            log.append(named(3, start=2))
        opened[0].armed = False
        with pytest.raises(LedgerError, match="a failed one"):
            log.append(named(3, start=2))
    with LogWriter(path) as log:
        assert log.size == (3 if persist else 2)
        assert log.append(named(3, start=2)) == (2,)  # asking again gives the same position either way
        check_log(log)


def append_for_ever(path: str, seed: int, told: multiprocessing.connection.Connection) -> None:
    """The child: appends batches and says what is durable, until it is killed."""
    draw = random.Random(seed)
    with LogWriter(Path(path)) as log:
        for _ in itertools.count():
            size = log.size
            log.append(named(size + draw.randint(1, 4), start=size))
            told.send(log.size)
            if draw.random() < 0.3:
                log.keep_note(KeptNote(note=signed_note(entries_of(log.size))))


def test_a_kill_at_any_instant_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at random instants; under soak a thousand of them. Kills of the process, not of the power."""
    draw = random.Random(20261122)
    context = multiprocessing.get_context("fork")
    path = tmp_path / "ledger.sqlite"
    acknowledged, torn = 0, 0
    for kill in range(KILLS):
        if kill % 50 == 0:
            shutil.rmtree(tmp_path)  # from an empty folder too, and never so long that checking it takes seconds
            tmp_path.mkdir()
            acknowledged = 0
        hear, told = context.Pipe(duplex=False)
        child = context.Process(target=append_for_ever, args=(str(path), kill, told))
        child.start()
        told.close()
        time.sleep(draw.uniform(0, 0.06))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        try:
            while True:
                acknowledged = hear.recv()
        except EOFError:
            hear.close()
        with LogWriter(path) as log:
            assert log.size >= acknowledged
            torn += log.size > acknowledged
            acknowledged = log.size
            assert list(log.entries()) == entries_of(log.size)
            check_log(log)
            log.append(named(log.size + 1, start=log.size))
            acknowledged += 1
    assert acknowledged > 0


def test_the_log_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    with LogWriter(tmp_path / "ledger.sqlite") as log:
        log.append(named(1))
        assert {file.stat().st_mode & 0o077 for file in tmp_path.iterdir()} == {0}


def test_the_database_syncs_every_commit(tmp_path: Path) -> None:
    LogWriter(tmp_path / "ledger.sqlite").close()
    connection = connect(tmp_path / "ledger.sqlite")
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
