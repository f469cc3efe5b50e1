"""The SQLite store keeps the contract, and its disk shows nothing, forgets what it must and survives what it can."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedtwin_client.store.block_store import KEYS_FOLDER, BlockStore, open_store
from fedtwin_client.store.keys import KEYS, NONCE
from fedtwin_client.store.sqlite_database import DATABASE, SqliteDatabase
from fedtwin_client.store.store import StoreError
from tests.contracts.store_contract import (
    DEVICES,
    START,
    Opening,
    StoreContract,
    batch_of,
    everything,
    rows_of,
    stay,
)
from tests.soak import SOAK

HERE = Path(__file__).parent
KILLS = 1000 if SOAK else 24


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def opening(self, tmp_path: Path) -> Opening:
        return lambda: open_store(tmp_path / "store")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pragma(store: BlockStore, text: str) -> str | int:
    """What the store's own connection says of its database."""
    database = store._database
    assert isinstance(database, SqliteDatabase)
    (found,) = database._connection.execute(f"PRAGMA {text}").fetchone()
    assert isinstance(found, str | int)
    return found


def filled(folder: Path) -> None:
    with open_store(folder) as store:
        store.append(batch_of(stay("Ada", count=600) + stay("Bo", count=600) + stay("Ada", count=5, signal="glucose")))


def test_what_is_acknowledged_survives_a_kill_at_any_instant(tmp_path: Path) -> None:
    program = [sys.executable, str(HERE / "kill_campaign.py"), str(tmp_path), str(KILLS)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stderr
    kills, batches, forgotten = map(int, done.stdout.split())
    assert kills == KILLS
    assert batches > KILLS  # on average more than one was acknowledged before each kill
    assert forgotten > 0


def test_every_commit_is_asked_to_be_on_the_disk(tmp_path: Path) -> None:
    # A kill cannot tell a synced file from a cached one, so the settings are read back.
    with open_store(tmp_path) as store:
        assert pragma(store, "synchronous") == 2  # FULL: the log is synced before a commit returns
        assert pragma(store, "journal_mode") == "wal"
        assert pragma(store, "secure_delete") == 1


def test_the_disk_shows_no_id_no_device_and_no_value(tmp_path: Path) -> None:
    rows = [("Ada Lovelace", "heart_rate", START + at, 61.25, DEVICES[0], at, 0) for at in range(1000)]
    with open_store(tmp_path) as store:
        store.append(batch_of(rows))
        store.append(batch_of(rows[:3]))
        for name, content in files(tmp_path).items():
            for secret in (b"Ada", b"Lovelace", b"monitor-1", b"heart_rate", bytes.fromhex("00007542") * 2):
                assert secret not in content, (name, secret)


def test_the_files_are_the_owners_alone(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    for path in (tmp_path / "store").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_forgetting_leaves_nothing_readable_in_any_file_or_copy(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "before")
    before = files(tmp_path / "before")
    with open_store(tmp_path / "store") as store:
        digest = store._keys.digest("Ada")
        other = store._keys.digest("Bo")
        wrapped = before[f"{KEYS_FOLDER}/{KEYS}"].split(digest)[1][:60]
        store.forget("Ada")
        bo = everything(store)
        now = files(tmp_path / "store")
        assert digest not in now[DATABASE] + now.get(f"{DATABASE}-wal", b"")
        assert other in now[DATABASE]
        with sqlite3.connect(f"file:{tmp_path / 'before' / DATABASE}?mode=ro", uri=True) as old:
            blobs = [row[0] for row in old.execute("SELECT sealed FROM block WHERE patient = 1")]
            assert len(blobs) >= 1
        site = next(content for name, content in before.items() if "site-" in name)
        for name, content in now.items():
            assert wrapped not in content, name
            assert site not in content, name
            for blob in blobs:
                assert blob[:32] not in content, name
                assert blob[-32:] not in content, name
    # The old data beside the keys of now: the patient is erased again, the other is whole.
    shutil.copy(tmp_path / "before" / DATABASE, tmp_path / "store" / DATABASE)
    with open_store(tmp_path / "store") as store:
        assert store.report.erased == 1
        assert store.report.whole
        assert len(store.read("Ada")) == 0
        assert everything(store) == bo
    # The old data and the old wrapped keys, with the site key of now: nothing opens.
    shutil.copy(tmp_path / "before" / DATABASE, tmp_path / "store" / DATABASE)
    shutil.copy(tmp_path / "before" / KEYS_FOLDER / KEYS, tmp_path / "store" / KEYS_FOLDER / KEYS)
    with pytest.raises(StoreError, match="expected the site key that wrapped it"):
        open_store(tmp_path / "store")


def test_a_backup_of_the_data_can_be_restored_beside_the_keys(tmp_path: Path) -> None:
    filled(tmp_path / "store")
    copy = (tmp_path / "store" / DATABASE).read_bytes()
    with open_store(tmp_path / "store") as store:
        rows = everything(store)
        store.append(batch_of(stay("Ada", count=700, first=600)))
    (tmp_path / "store" / DATABASE).write_bytes(copy)
    with open_store(tmp_path / "store") as store:
        assert everything(store) == rows
        assert store.report.whole


def test_no_nonce_repeats_even_after_an_older_database_is_restored(tmp_path: Path) -> None:
    def sealed() -> set[bytes]:
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
            return {row[0] for row in connection.execute("SELECT sealed FROM block")}

    filled(tmp_path)
    older = (tmp_path / DATABASE).read_bytes()
    seen = sealed()
    for first in range(600, 1200, 300):  # the same version numbers again, with other contents
        (tmp_path / DATABASE).write_bytes(older)
        with open_store(tmp_path) as store:
            for at in range(100):
                store.append(batch_of(stay("Ada", count=2, first=first + at)))
        seen |= sealed()
    assert len(seen) > 200
    assert len({blob[:NONCE] for blob in seen}) == len(seen)


def test_keys_of_another_store_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "one")
    filled(tmp_path / "two")
    shutil.rmtree(tmp_path / "one" / KEYS_FOLDER)
    with pytest.raises(StoreError, match="expected the keys that belong to this database"):
        open_store(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / KEYS_FOLDER)
    shutil.copytree(tmp_path / "two" / KEYS_FOLDER, tmp_path / "one" / KEYS_FOLDER)
    with pytest.raises(StoreError, match="expected the keys that belong to this database"):
        open_store(tmp_path / "one")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE block SET sealed = (SELECT sealed FROM block b WHERE b.version = 3 - block.version) WHERE version < 3",
        "UPDATE block SET patient = 3 - patient WHERE version = 1",
        "UPDATE block SET signal = signal + 1 WHERE version = 1",
        "UPDATE block SET span = span + 1 WHERE version = 1",
        "UPDATE block SET rows = rows - 1 WHERE version = 1",
        "UPDATE block SET version = 77 WHERE version = 1",
        "UPDATE block SET sealed = substr(sealed, 1, 40) WHERE version = 1",
        "UPDATE block SET sealed = x'00' WHERE version = 1",
        "UPDATE patient SET number = 9 WHERE number = 1",
    ],
)
def test_a_block_that_stands_for_another_is_set_aside_and_the_rest_is_served(tmp_path: Path, change: str) -> None:
    filled(tmp_path)
    with open_store(tmp_path) as store:
        rows = everything(store)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute(change).rowcount > 0
    connection.close()
    with open_store(tmp_path) as store:
        damaged = store.report.damaged
        assert damaged
        assert not store.report.whole
        left = everything(store)
        assert set(left) < set(rows)
        assert sum(damage.rows for damage in damaged) in {len(rows) - len(left), len(rows) - len(left) - 1}
        assert store.append(batch_of(rows[:5])).stored == 5
    with open_store(tmp_path) as store:
        assert store.report.damaged == damaged  # reported until somebody looks, and no more than once


@pytest.mark.parametrize("lost", ["id", "key"])
def test_a_patient_whose_key_or_id_was_damaged_is_taken_again(tmp_path: Path, lost: str) -> None:
    filled(tmp_path)
    keys = tmp_path / KEYS_FOLDER / KEYS
    if lost == "id":
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as connection:
            connection.execute("UPDATE patient SET sealed = x'00' WHERE number = 1")
    else:
        content = bytearray(keys.read_bytes())
        content[-2 * 78 + 40] ^= 1  # the first of two records
        keys.write_bytes(content)
    with open_store(tmp_path) as store:
        assert not store.report.whole
        assert store.patients() == ("Bo",)
        store.append(batch_of(stay("Ada", count=3, signal="lactate")))
        assert store.patients() == ("Ada", "Bo")
    with open_store(tmp_path) as store:
        found = [row for row in everything(store) if row[0] == "Ada"]
        assert len(found) == (608 if lost == "id" else 3)


def test_damage_is_found_while_reading_too(tmp_path: Path) -> None:
    filled(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE block SET rows = rows + 1 WHERE version = 1")
    connection.close()
    with open_store(tmp_path, check=False) as store:
        assert store.report.whole
        assert len(store.read("Ada")) == 600
        assert [damage.rows for damage in store.report.damaged] == [6]


def test_a_flipped_byte_anywhere_in_the_database_costs_what_it_hit_and_no_more(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        for patient in range(40):
            store.append(batch_of(stay(f"patient-{patient}", count=300)))
        rows = everything(store)
    content = (tmp_path / "store" / DATABASE).read_bytes()
    found = 0
    for at in range(1000, len(content), len(content) // 24):
        damaged = bytearray(content)
        damaged[at : at + 8] = bytes(byte ^ 0xA5 for byte in damaged[at : at + 8])
        (tmp_path / "store" / DATABASE).write_bytes(damaged)
        with open_store(tmp_path / "store") as store:
            left = everything(store)
            assert set(left) <= set(rows)
            assert len(left) >= len(rows) - 2 * 4096  # one page and what it leads to
            if len(left) < len(rows):
                assert not store.report.whole
                found += 1
            assert store.append(batch_of(stay("new", count=300))).stored == 300
            assert len(store.read("new")) == 300
    assert found > 5


def test_a_database_that_is_none_is_kept_and_replaced(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"\x00 not a database at all" * 500)
    with open_store(tmp_path) as store:
        assert everything(store) == []
        assert "kept as observations.db.damaged" in store.report.repairs[0]
    assert (tmp_path / f"{DATABASE}.damaged").stat().st_size == 500 * 23


def test_a_second_writer_gets_a_clear_error(tmp_path: Path) -> None:
    # The lock belongs to the open file, so that a second one in this process stands for one in another.
    with open_store(tmp_path) as store:
        store.append(batch_of(stay("Ada", count=2)))
        with pytest.raises(StoreError, match="expected no other process with this store, found one that runs"):
            open_store(tmp_path)
        assert everything(store) == stay("Ada", count=2)
    open_store(tmp_path).close()


def test_a_full_disk_refuses_the_append_and_loses_nothing(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append(batch_of(stay("Ada", count=600)))
        pragma(store, f"max_page_count = {int(pragma(store, 'page_count')) + 3}")
        with pytest.raises(StoreError, match="expected a disk with room"):
            store.append(batch_of(stay("Bo", count=9000)))
        assert everything(store) == stay("Ada", count=600)
        pragma(store, "max_page_count = 1000000")
        store.append(batch_of(stay("Bo", count=600)))
        assert everything(store) == stay("Ada", count=600) + stay("Bo", count=600)
    with open_store(tmp_path) as store:
        assert store.report.whole
        assert everything(store) == stay("Ada", count=600) + stay("Bo", count=600)


def test_a_file_that_may_not_grow_loses_nothing(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from fedtwin_client.store.block_store import open_store\n"
        "from fedtwin_client.store.store import StoreError\n"
        "from tests.contracts.store_contract import batch_of, stay\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = open_store(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "done = 0\n"
        "try:\n"
        "    for at in range(1000):\n"
        "        store.append(batch_of(stay('Ada', count=3000, first=3000 * at, step=977)))\n"
        "        done += 1\n"
        "except StoreError as err:\n"
        "    print(done, err.expected)\n"
        "    sys.stdout.flush()\n"
        "    import os; os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[2],
    )
    assert done.returncode == 0, done.stderr
    count, expected = done.stdout.split(maxsplit=1)
    assert expected.startswith("a disk ")
    assert int(count) > 3
    with open_store(tmp_path) as store:
        assert store.report.whole
        assert len(rows_of(store.read("Ada"))) >= 3000 * int(count)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="expected a disk"):
        open_store(tmp_path / "file" / "store")
