from __future__ import annotations

from pathlib import Path

from fedtwin_shared.ledger.state import verify_history
from fedtwin_simulations.bench import BENCHES
from fedtwin_simulations.ledger_bench import (
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
    assert time_rounds(tmp_path, rounds=2) > 0
    assert time_proofs(tmp_path, list(make_entries(50)), proofs=5) > 0
    assert time_verification(list(make_entries(50))) > 0
