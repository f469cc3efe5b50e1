from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.ledger.note import make_verifier_key
from fedtwin_shared.ledger.state import verify_history
from fedtwin_shared.ledger.witness_client import WitnessContact
from fedtwin_shared.ledger.witness_store import WitnessStore
from fedtwin_shared.ledger.witnesses import Witnesses
from fedtwin_simulations.bench import BENCHES
from fedtwin_simulations.ledger_bench import (
    ORIGIN,
    make_entries,
    time_proofs,
    time_rounds,
    time_synced_writes,
    time_verification,
)


def test_the_history_that_is_measured_is_one() -> None:
    for count in (3, 8, 103):
        assert verify_history(make_entries(count)).entries == count
    assert len(verify_history(make_entries(103)).tasks) == 20


def test_everything_is_measured(tmp_path: Path) -> None:
    assert "ledger" in BENCHES
    assert all(rate > 0 for rate in time_synced_writes(tmp_path, slices=2))
    key = Ed25519PrivateKey.generate()
    log = make_verifier_key(ORIGIN, key)
    store = WitnessStore.create(tmp_path / "witness.sqlite", name="keeper/witness", logs={log.name: log})
    contact = WitnessContact(key=store.verifier_key, send=lambda body: store.add_checkpoint(body, clock=lambda: 1))
    assert time_rounds(tmp_path, Witnesses(contacts=(contact,), faulty=0), key=key, rounds=2) > 0
    latest = store.latest(log.name)
    assert latest is not None
    assert latest.size == 2 + 1 + 5 * 3 - 1  # all but the last release
    assert time_proofs(tmp_path, list(make_entries(50)), proofs=5) > 0
    assert time_verification(list(make_entries(50))) > 0
