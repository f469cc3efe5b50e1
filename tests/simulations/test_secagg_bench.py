from __future__ import annotations

from pathlib import Path

import pytest

from fedtwin_simulations import secagg_bench
from fedtwin_simulations.secagg_bench import (
    Clock,
    bench_secagg,
    make_setup,
    make_signers,
    open_sites,
    run_setup,
    run_step,
)


def test_the_bench_measures_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("SITES", 10),
        ("LENGTH", 20_000),
        ("INSTANCES", 1),
        ("LOST", 1),
        ("COLLUDERS", 3),
        ("GRID_SITES", 4),
        ("GRID_LENGTH", 20_000),
        ("GRID_ROUNDS", 1),
    ):
        monkeypatch.setattr(secagg_bench, name, value)
    # Real processes have a test of their own.
    monkeypatch.setattr(secagg_bench, "time_superlink_rounds", lambda *_, **__: [1.0])
    said: list[str] = []
    found = bench_secagg(said.append)
    by_case = {row.case: row for row in found.rows}
    assert all(row.ours > 0 for row in found.rows)
    assert said
    ratio = by_case["a site's upload in a step ÷ float32"]
    assert 2 < ratio.ours < 2.2  # half a kilobyte of header counts with vectors as short as these
    assert ratio.holds == (ratio.ours <= 2.05)


def test_a_wrong_sum_stops_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signers = make_signers(5)
    setup, sites = make_setup(signers, instances=1), open_sites(tmp_path, signers)
    roll, _ = run_setup(setup, sites, Clock({}))
    monkeypatch.setattr(secagg_bench, "unmask_sum", lambda state, revealed: state.total.view("i8"))
    with pytest.raises(RuntimeError, match="wrong"):
        run_step(roll, sites, Clock({}), length=10, lost=())
