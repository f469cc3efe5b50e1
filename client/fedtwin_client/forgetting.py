"""Erasing patients from everything that a hospital's node holds, whether or not its gateway runs."""

from __future__ import annotations

from collections.abc import Sequence

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.consent_store import ConsentStore
from fedtwin_client.ingest.control import ask
from fedtwin_client.ingest.registry import FILE, forget_patients, read_registry, write_registry
from fedtwin_client.store.opening import open_hospital_store


def forget(hospital: HospitalDirectory, ids: Sequence[str]) -> int:
    """Destroy patients' keys and everything the node holds of them; return how many the store had a key for.

    Raises `FedtwinError`; what was erased up to there stays erased, and the call may be repeated.

    - no file of the node names them afterwards, but those that the hospital itself keeps in its data folder
    """
    known = ask(hospital.node, {"forget": list(ids)})  # a running gateway has the store, and does it
    if known is None:
        with open_hospital_store(hospital, check=False) as store:
            known = sum(store.forget(one) for one in ids)
    consents = ConsentStore(hospital.consent)
    for one in ids:
        consents.forget(one)
    path = hospital.node / FILE
    registry = read_registry(path)
    if (without := forget_patients(registry, ids)) != registry:
        write_registry(path, without)
    hospital.quarantine.unlink(missing_ok=True)  # it may quote rows of theirs; the next check writes it again
    return known
