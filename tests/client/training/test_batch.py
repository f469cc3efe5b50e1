"""Tiles of one shape, in which a patient's slot depends on nobody else; Poisson sampling over patients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.training.batch import Batch, as_batch
from fedtwin_client.training.sampling import draw_batch, draw_slots, fill_slots
from fedtwin_simulations.seeded_randomness import SeededStream
from tests.client.small import make_examples, small_study


def everybody(patients: int) -> Batch:
    batch = as_batch(make_examples(small_study(features={"windows": 2}), patients))
    return Batch(x=batch.x, mask=batch.mask, y=torch.arange(1, patients + 1, dtype=torch.float32))


def test_every_patient_is_drawn_alone_with_the_rate() -> None:
    rate, patients, draws = 0.3, 50, 2000
    batch, stream = everybody(patients), SeededStream(bytes(32))
    taken = torch.zeros(draws, patients)
    for row in range(draws):
        taken[row, draw_batch(batch, rate=rate, stream=stream).y.long() - 1] = 1
    sd = math.sqrt(rate * (1 - rate))
    # Six standard errors; a batch of fixed size has no spread at all, a shuffled partition correlates patients.
    assert (taken.mean(dim=0) - rate).abs().max() < 6 * sd / math.sqrt(draws)
    assert taken.sum(dim=1).var().item() == pytest.approx(patients * sd**2, rel=6 * math.sqrt(2 / draws))
    together = torch.corrcoef(taken.T) - torch.eye(patients)
    assert together.abs().max() < 6 / math.sqrt(draws)
    in_a_row = torch.corrcoef(torch.stack([taken[:-1].flatten(), taken[1:].flatten()]))[0, 1]
    assert abs(in_a_row) < 6 / math.sqrt(draws * patients)


def test_at_rate_one_the_batch_is_everybody() -> None:
    batch = everybody(7)
    assert draw_batch(batch, rate=1.0, stream=SeededStream(bytes(32))) is batch


def test_a_batch_may_be_empty() -> None:
    batch = draw_batch(everybody(5), rate=1e-12, stream=SeededStream(bytes(32)))
    assert len(batch) == 0
    assert list(batch.tiles(fill_slots(0, size=3), size=3)) == []


def test_slots_are_uniform_and_drawn_for_each_patient_alone() -> None:
    slots = draw_slots(64_000, size=32, stream=SeededStream(bytes(32)))
    counts = np.bincount(slots, minlength=32)
    assert len(counts) == 32
    assert np.abs(counts - 2000).max() < 6 * math.sqrt(2000)
    # The first patients' slots are the same however many follow.
    assert np.array_equal(draw_slots(100, size=32, stream=SeededStream(bytes(32))), slots[:100])


@given(wanted=st.lists(st.integers(0, 3), max_size=12), drawn=st.booleans())
def test_tiles_hold_every_patient_once_in_the_wanted_slot(wanted: list[int], drawn: bool) -> None:
    slots = np.array(wanted, np.int64) if drawn else fill_slots(len(wanted), size=4)
    batch = everybody(len(wanted))
    seen = []
    for tile, patients in batch.tiles(slots, size=4):
        assert len(tile) == len(patients) == 4
        for slot, patient in enumerate(patients.tolist()):
            if patient < 0:
                assert not any(part[slot].any() for part in (tile.x, tile.mask, tile.y))
            else:
                assert slots[patient] == slot
                assert torch.equal(tile.x[slot], batch.x[patient])
                assert torch.equal(tile.mask[slot], batch.mask[patient])
                assert tile.y[slot] == batch.y[patient]
                seen.append(patient)
    assert sorted(seen) == list(range(len(wanted)))


def test_without_gaps_tiles_are_as_few_as_can_be() -> None:
    assert len(list(everybody(9).tiles(fill_slots(9, size=4), size=4))) == 3


def test_a_batch_whose_first_dimension_is_not_the_patient_is_refused() -> None:
    batch = everybody(6)
    with pytest.raises(ValueError, match="patients, windows, time, features"):
        Batch(x=batch.x.flatten(0, 1), mask=batch.mask.flatten(0, 1), y=batch.y)
    with pytest.raises(ValueError, match="patients"):
        Batch(x=batch.x.transpose(0, 1), mask=batch.mask.transpose(0, 1), y=batch.y)
