"""A tile's windows in chunks of one number of rows: whole patients one after the other, windows that count only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedtwin_client.training.batch import Batch
from fedtwin_client.training.products import Span

# Rows of one chunk, measured for one core: fewer cost more calls, more leave the cache. A performance knob.
CHUNK_ROWS = 256
# Every chunk is a multiple: element-wise operations then have no remainder that would round otherwise.
ROW_MULTIPLE = 32
# A step's tile has as many more slots than patients are expected; its last chunk should not be mostly empty.
TILE_MARGIN = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Windows that are computed together.

    windows: int64[used], each row's place among the tile's patients · windows; rows from `used` on are empty.
    spans: the rows of each patient. weight: f32[used], of the row's logit in its patient's: 1 ÷ windows that count.
    """

    windows: Tensor
    spans: tuple[Span, ...]
    weight: Tensor


def chunk_rows(slots: int, windows: int) -> int:
    """Return how many rows a chunk of tiles of this shape has: a constant of the plan.

    - a patient always fits in whole
    """
    expected = int(slots * windows / TILE_MARGIN)
    return max(
        min(ROW_MULTIPLE * max(expected // ROW_MULTIPLE, 1), CHUNK_ROWS), ROW_MULTIPLE * -(-windows // ROW_MULTIPLE)
    )


def cut_tile(tile: Batch, filled: Tensor, rows: int) -> Iterator[Chunk]:
    """Yield the chunks of a tile. A window counts where anything is known; all do where nothing is (`networks`).

    - which rows a patient has depends on that patient alone; where they are may depend on the others
    """
    known = tile.mask.flatten(2).any(dim=2)
    counts = (known | ~known.any(dim=1, keepdim=True)) & filled[:, None]
    place = torch.arange(counts.numel(), device=counts.device).view(counts.shape)
    slots, sizes = torch.nonzero(filled).flatten(), counts.sum(dim=1)
    pending: list[tuple[int, int]] = []
    used = 0
    for slot, size in zip(slots.tolist(), sizes[slots].tolist(), strict=True):
        if used + size > rows:
            yield _make_chunk(pending, place, counts)
            pending, used = [], 0
        pending.append((slot, size))
        used += size
    if pending:
        yield _make_chunk(pending, place, counts)


def _make_chunk(patients: list[tuple[int, int]], place: Tensor, counts: Tensor) -> Chunk:
    spans, first = [], 0
    for slot, size in patients:
        spans.append(Span(slot=slot, first=first, end=first + size))
        first += size
    chosen = torch.tensor([slot for slot, _ in patients], device=counts.device)
    sizes = torch.tensor([size for _, size in patients], device=counts.device)
    return Chunk(
        windows=place[chosen][counts[chosen]],
        spans=tuple(spans),
        weight=(1 / sizes.to(torch.float32)).repeat_interleave(sizes),
    )
