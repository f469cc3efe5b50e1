"""The PostgreSQL store keeps the same contract as the SQLite one, on Debian's own server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fedtwin_client.store.postgresql_database import PostgresqlDatabase, open_postgresql_store
from fedtwin_client.store.store import StoreError
from tests.client.store.postgresql_server import find_programs, running_server
from tests.contracts.store_contract import Opening, StoreContract, batch_of, everything, stay

PROGRAMS = find_programs()

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="postgresql is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    assert PROGRAMS is not None
    with running_server(PROGRAMS) as conninfo:
        yield conninfo


@pytest.fixture
def conninfo(server: str) -> str:
    """An empty database."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS patient, name, block, damaged, entry, progress")
    return server


class TestPostgresqlStore(StoreContract):
    @pytest.fixture
    def opening(self, conninfo: str, tmp_path: Path) -> Opening:
        return lambda: open_postgresql_store(conninfo, tmp_path)


def test_the_server_sees_no_id_no_device_and_no_value(conninfo: str, tmp_path: Path) -> None:
    with open_postgresql_store(conninfo, tmp_path) as store:
        store.append(batch_of(stay("Ada Lovelace", count=600)))
    with psycopg.connect(conninfo) as connection:
        seen = b"".join(
            str(row).encode()
            for table in ("patient", "name", "block")
            for row in connection.execute(f"TABLE {table}".encode())
        )
    for secret in (b"Ada", b"monitor", b"heart_rate"):
        assert secret not in seen


def test_a_second_writer_gets_a_clear_error(conninfo: str, tmp_path: Path) -> None:
    with (
        open_postgresql_store(conninfo, tmp_path),
        pytest.raises(StoreError, match="expected no other process with this store"),
    ):
        PostgresqlDatabase(conninfo)
    PostgresqlDatabase(conninfo).close()


def test_a_lost_server_loses_nothing_acknowledged(conninfo: str, tmp_path: Path) -> None:
    store = open_postgresql_store(conninfo, tmp_path)
    store.append(batch_of(stay("Ada", count=600)))
    with psycopg.connect(conninfo, autocommit=True) as connection:
        others = "pid != pg_backend_pid() AND backend_type = 'client backend'"
        connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}".encode())
    with pytest.raises(StoreError, match="expected a PostgreSQL server"):
        store.append(batch_of(stay("Bo", count=600)))
    with pytest.raises(StoreError, match="to be opened again"):
        store.read("Ada")
    store.close()
    with open_postgresql_store(conninfo, tmp_path) as store:
        assert everything(store) == stay("Ada", count=600)
        assert store.report.whole


def test_damage_is_set_aside_and_the_rest_is_served(conninfo: str, tmp_path: Path) -> None:
    with open_postgresql_store(conninfo, tmp_path) as store:
        store.append(batch_of(stay("Ada", count=600) + stay("Bo", count=600)))
    with psycopg.connect(conninfo) as connection:
        connection.execute("UPDATE block SET span = span + 1 WHERE version = 1")
    with open_postgresql_store(conninfo, tmp_path) as store:
        assert everything(store) == stay("Bo", count=600)
        assert [damage.rows for damage in store.report.damaged] == [600]
