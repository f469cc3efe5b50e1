"""Rows are put in order, packed and unpacked without loss; what is not a packed block is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.store.rows import COLUMN_HEADER, COLUMNS, HEADER, Table, arrange, cut, pack, unpack

NUMBERS = st.integers(-(2**53), 2**53) | st.integers(0, 300) | st.just(5)
TABLES = st.lists(st.tuples(*[NUMBERS] * COLUMNS), max_size=40)


def table_of(rows: list[tuple[int, ...]]) -> Table:
    return np.array(rows, np.int64).reshape(len(rows), COLUMNS).T.copy()


@settings(deadline=None, max_examples=60)
@given(rows=TABLES, data=st.data())
def test_packing_loses_nothing(rows: list[tuple[int, ...]], data: st.DataObject) -> None:
    table = table_of(rows)
    inner = data.draw(st.sets(st.integers(1, max(len(rows) - 1, 1)), max_size=5)) if len(rows) > 1 else set[int]()
    starts = np.array(sorted({0, *inner, len(rows)}), np.int64)
    packed, offsets = pack(table, starts)
    unpacked = unpack(packed, offsets, starts)
    assert unpacked is not None
    assert np.array_equal(unpacked, table)


@pytest.mark.parametrize("width", [0, 1, 2, 4, 8])
def test_each_width_is_used_where_it_is_enough(width: int) -> None:
    rows = 100
    table = np.zeros((COLUMNS, rows), np.int64)
    table[1] = np.arange(rows) * 1000 + 17
    table[2, 0] = 2 ** (8 * width) - 1 if 0 < width < 8 else 2**52 * (width == 8)
    packed, _ = pack(table, np.array([0, rows]))
    assert len(packed) == HEADER + COLUMNS * COLUMN_HEADER + rows * width


@settings(deadline=None, max_examples=60)
@given(rows=TABLES, owners=st.data())
def test_rows_are_in_order_and_once(rows: list[tuple[int, ...]], owners: st.DataObject) -> None:
    owner = owners.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    found, table = arrange(np.array(owner, np.int64), table_of(rows))
    expected = sorted({(who, *row) for who, row in zip(owner, rows, strict=True)})
    assert list(zip(found.tolist(), *table.tolist(), strict=True)) == expected


def test_runs_are_cut_where_any_key_changes() -> None:
    assert cut(np.array([1, 1, 1, 2, 2]), np.array([7, 7, 8, 8, 8])).tolist() == [0, 2, 3, 5]
    assert cut(np.array([], np.int64)).tolist() == [0]


def test_anything_but_a_packed_block_is_refused() -> None:
    table = np.arange(COLUMNS * 50, dtype=np.int64).reshape(COLUMNS, 50) ** 2
    starts = np.array([0, 50])
    packed, offsets = pack(table, starts)
    for length in range(len(packed)):
        assert unpack(packed[:length], np.array([0, length]), starts) is None
    assert unpack(packed, offsets, np.array([0, 49])) is None
    longer = np.append(packed, np.uint8(0))
    assert unpack(longer, np.array([0, len(longer)]), starts) is None
    wide = packed.copy()
    wide[HEADER + 16] = 9
    assert unpack(wide, offsets, starts) is None
