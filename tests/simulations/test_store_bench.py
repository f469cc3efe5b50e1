"""The benchmark of the store measures what it says, at a size that takes a moment."""

from __future__ import annotations

import pytest

from fedtwin_simulations import store_bench
from fedtwin_simulations.bench import BENCHES


def test_every_row_of_the_benchmark_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"PATIENTS": 40, "SERIES": 50, "BASELINE_PATIENTS": 2, "BEDS": 3, "MINUTES": 2, "REPEATS": 1}
    for name, value in small.items():
        monkeypatch.setattr(store_bench, name, value)
    said: list[str] = []
    bench = BENCHES["store"](said.append)
    assert len(bench.rows) == 8
    assert all(row.ours > 0 for row in bench.rows)
    assert any(line.startswith("16,000 observations") for line in said)


def test_stays_are_the_same_every_time_and_go_on_where_they_ended() -> None:
    one, other = store_bench.make_stays(0, 2, length=5), store_bench.make_stays(0, 2, length=5)
    assert one.time.tolist() == other.time.tolist()
    later = store_bench.make_stays(0, 2, begin=5, length=5)
    assert later.sequence.min() == one.sequence.max() + 1
