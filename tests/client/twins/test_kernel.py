"""The compiled filter gives the plain one's bits."""

from __future__ import annotations

import numpy as np
import pytest

from fedtwin_client.twins import filter as plain
from fedtwin_client.twins import kernel
from fedtwin_client.twins.block import Block
from fedtwin_client.twins.temperature import TEMPERATURE
from tests.client.twins.vital_events import BLOCKS, make_events


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_the_compiled_filter_gives_the_same_bits(block: Block) -> None:
    patients = kernel.LANES + 9  # a full tile and a part of one
    events = make_events(block, patients=patients, count=3 * patients, seed=4)
    one, other = plain.make_bank(block, patients), plain.make_bank(block, patients)
    expected = plain.apply_events(block, one, events)
    found = kernel.apply_events(block, other, events)
    for name in ("mean", "variance", "fate"):
        assert np.array_equal(getattr(expected, name), getattr(found, name)), name
    for name in ("state", "clock", "strikes"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert set(found.fate) == {plain.ONLY_PREDICT, plain.GATED, plain.USED}


def test_time_never_runs_backwards() -> None:
    bank = plain.make_bank(TEMPERATURE, 1)
    events = make_events(TEMPERATURE, patients=1, count=4, seed=5)
    with pytest.raises(ValueError, match="order of time"):
        kernel.apply_events(TEMPERATURE, bank, events.take(np.array([3, 0])))
