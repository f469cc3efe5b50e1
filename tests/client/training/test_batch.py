"""Poisson sampling over patients."""

from __future__ import annotations

import math

import pytest
import torch

from fedtwin_client.training.batch import Batch, as_batch, draw_batch
from tests.client.small import make_examples, small_study


def everybody(patients: int) -> Batch:
    return as_batch(make_examples(small_study(features={"windows": 2}), patients))


def generator(seed: int = 0) -> torch.Generator:
    found = torch.Generator()
    found.manual_seed(seed)
    return found


def test_every_patient_is_drawn_alone_with_the_rate() -> None:
    rate, patients, draws = 0.3, 50, 2000
    batch = everybody(patients)
    batch = Batch(x=batch.x, mask=batch.mask, y=torch.arange(patients, dtype=torch.float32))
    source = generator()
    taken = torch.zeros(draws, patients)
    for row in range(draws):
        taken[row, draw_batch(batch, rate=rate, generator=source).y.long()] = 1
    sd = math.sqrt(rate * (1 - rate))
    # Six standard errors; a batch of fixed size has no spread at all, a shuffled partition correlates patients.
    assert (taken.mean(dim=0) - rate).abs().max() < 6 * sd / math.sqrt(draws)
    assert taken.sum(dim=1).var().item() == pytest.approx(patients * sd**2, rel=6 * math.sqrt(2 / draws))
    together = torch.corrcoef(taken.T) - torch.eye(patients)
    assert together.abs().max() < 6 / math.sqrt(draws)
    in_a_row = torch.corrcoef(torch.stack([taken[:-1].flatten(), taken[1:].flatten()]))[0, 1]
    assert abs(in_a_row) < 6 / math.sqrt(draws * patients)


def test_rate_one_is_everybody_and_draws_nothing() -> None:
    source = generator()
    before = source.get_state()
    batch = everybody(7)
    assert draw_batch(batch, rate=1.0, generator=source) is batch
    assert torch.equal(source.get_state(), before)


def test_a_batch_may_be_empty() -> None:
    batch = draw_batch(everybody(5), rate=1e-12, generator=generator())
    assert len(batch) == 0
    assert [(len(piece), patients) for piece, patients in batch.tiles(3)] == [(3, 0)]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        draw_batch(everybody(2), rate=rate, generator=generator())


def test_tiles_are_the_batch_in_order_all_of_one_size() -> None:
    batch = everybody(7)
    tiles = list(batch.tiles(3))
    assert [(len(piece), patients) for piece, patients in tiles] == [(3, 3), (3, 3), (3, 1)]
    assert torch.equal(torch.cat([piece.x[:patients] for piece, patients in tiles]), batch.x)
    assert not any(part[1:].any() for part in (tiles[-1][0].x, tiles[-1][0].mask, tiles[-1][0].y))


def test_a_batch_whose_first_dimension_is_not_the_patient_is_refused() -> None:
    batch = everybody(6)
    with pytest.raises(ValueError, match="patients, windows, time, features"):
        Batch(x=batch.x.flatten(0, 1), mask=batch.mask.flatten(0, 1), y=batch.y)
    with pytest.raises(ValueError, match="patients"):
        Batch(x=batch.x.transpose(0, 1), mask=batch.mask.transpose(0, 1), y=batch.y)
