from __future__ import annotations

import logging

import numpy as np
import pytest

from fedtwin_simulations import robustness
from fedtwin_simulations.robustness import Attack, bench_robustness, by_groups, clip, defences, make_world, run


def test_hostile_sites_break_the_mean_and_not_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name, value in (("SITES", 20), ("ROUNDS", 4), ("PATIENTS", 60)):
        monkeypatch.setattr(robustness, name, value)
    world = make_world(seed=0)
    clean = run(world, robustness._mean(20), hostile=0, attack=Attack.SCALE)
    undefended = run(world, robustness._mean(20), hostile=4, attack=Attack.SCALE)
    defended = run(world, defences(4)["median"], hostile=4, attack=Attack.SCALE)
    assert clean > 0.7
    assert undefended < 0.5
    assert defended > clean - robustness.BROKEN


def test_a_group_with_a_hostile_site_is_worth_no_more_than_its_clip() -> None:
    updates = [np.full(3, 0.1, dtype=np.float32) for _ in range(12)]
    updates[0] = np.full(3, -1e9, dtype=np.float32)
    found = by_groups(robustness._mean)(updates)  # two groups of six: one clean, one at the clip, the other way
    assert found == pytest.approx(np.full(3, (0.1 - 1 / np.sqrt(3)) / 2), rel=1e-4)


def test_a_clipped_update_is_short_and_finite() -> None:
    assert np.linalg.norm(clip(np.array([3.0, 4.0]))) == pytest.approx(1.0)
    assert clip(np.array([0.3, 0.4])) == pytest.approx([0.3, 0.4])
    assert clip(np.array([np.inf, np.nan])).tolist() == [0.0, 0.0]


def test_every_defence_has_a_row_with_the_undefended_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "run", lambda world, defence, hostile, attack: 0.8 if hostile == 0 else 0.7)
    rows = bench_robustness(lambda line: None).rows
    assert len(rows) == 1 + 2 * 4 * 6
    assert rows[0].baseline is None
    assert all(row.baseline == 0.7 and row.case.endswith("breaks") for row in rows[1:])
