from __future__ import annotations

import numpy as np

from fedtwin_client.twins import filter as plain
from fedtwin_client.twins.filter import USED, make_bank
from fedtwin_client.twins.glucose import GLUCOSE
from fedtwin_simulations.bench import BENCHES
from fedtwin_simulations.twin_bench import make_readings, time_filter


def test_every_reading_that_is_timed_is_used() -> None:
    assert "twin" in BENCHES
    bank = make_bank(GLUCOSE, 20)
    for turn in range(6):
        found = plain.apply_events(GLUCOSE, bank, make_readings(np.arange(20), turn, irregular=turn % 2 == 1))
        assert np.mean(found.fate == USED) > 0.8  # the others are beyond the gate, and cost the same
    assert len(GLUCOSE.states) == 8
    assert time_filter(plain.apply_events, 20, turns=2, irregular=True, repeats=1) > 0
