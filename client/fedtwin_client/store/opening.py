"""A hospital's own store, wherever its configuration says that it is."""

from __future__ import annotations

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.store.block_store import BlockStore, open_store
from fedtwin_shared.errors import ConfigurationError


def open_hospital_store(hospital: HospitalDirectory, *, check: bool = True) -> BlockStore:
    """Open, or make, the store. Raises `StoreError`, and `ConfigurationError` where PostgreSQL's client is missing."""
    conninfo = hospital.config.store.postgresql
    if conninfo is None:
        return open_store(hospital.store, check=check)
    try:
        from fedtwin_client.store.postgresql_database import open_postgresql_store
    except ImportError as err:
        raise ConfigurationError(
            file=hospital.config_file,
            field="store.postgresql",
            expected="psycopg (pip install 'fedtwin[postgresql]')",
            found="none",
        ) from err
    return open_postgresql_store(conninfo, hospital.store, check=check)
