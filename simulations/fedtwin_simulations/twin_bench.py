"""How many scalar updates a second the twin's filter does on one core: the glucose block, 8 states."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from fedtwin_client.twins import filter as plain
from fedtwin_client.twins import kernel
from fedtwin_client.twins.filter import Bank, Events, Predicted, make_bank
from fedtwin_client.twins.glucose import GLUCOSE
from fedtwin_simulations.results import Bench, BenchRow

MINUTE = 60_000
PERIOD = 5 * MINUTE
REPEATS = 5
GOALS = {1_000: 10e6, 100_000: 5e6}
MIXED = "random order, a reading after 1 to 5 minutes"

Filter = Callable[..., Predicted]


def bench_twin(say: Callable[[str], None]) -> Bench:
    """Measure the compiled filter beside plain numpy: in order, and in random order at irregular times."""
    say("compiling")
    kernel.apply_events(GLUCOSE, make_bank(GLUCOSE, 1), make_readings(np.zeros(1, np.int64), 0, irregular=False))
    rows = []
    for patients, goal in GOALS.items():
        for irregular in (False, True):
            case = f"{patients:,} patients, " + (MIXED if irregular else "in order, a reading every 5 minutes")
            say(case)
            turns = max(2, 200_000 // patients)
            ours = time_filter(kernel.apply_events, patients, turns=turns, irregular=irregular)
            numpy = time_filter(plain.apply_events, patients, turns=2, irregular=irregular, repeats=1)
            rows.append(
                BenchRow(
                    case=case,
                    ours=ours,
                    baseline=numpy,
                    baseline_name="the same filter in plain numpy",
                    unit="updates/s",
                    goal=f"at least {goal:,.0f}",
                    holds=ours >= goal,
                )
            )
    return Bench(bench="twin", rows=tuple(rows))


def time_filter(apply: Filter, patients: int, *, turns: int, irregular: bool, repeats: int = REPEATS) -> float:
    """Return updates for each second of this process's own time, at best; ordering by patient is part of it."""
    generator = np.random.default_rng(0)
    order = generator.permutation(patients) if irregular else np.arange(patients)
    readings = [make_readings(order, turn, irregular=irregular) for turn in range(turns + 1)]
    bank, best = make_bank(GLUCOSE, patients), 0.0
    apply(GLUCOSE, bank, readings[0])
    start = Bank(state=bank.state.copy(), clock=bank.clock.copy(), strikes=bank.strikes.copy())
    for _ in range(repeats):
        for field in Bank.__slots__:
            getattr(bank, field)[:] = getattr(start, field)
        began = time.process_time()
        for turn in readings[1:]:
            apply(GLUCOSE, bank, turn)
        best = max(best, turns * patients / (time.process_time() - began))
    return best


def make_readings(row: np.ndarray[tuple[int], np.dtype[np.int64]], turn: int, *, irregular: bool) -> Events:
    """Return one sensor reading of each patient in `row`: 130 to 150 mg/dL."""
    generator, count = np.random.default_rng(turn), len(row)
    late = generator.integers(0, 4 * MINUTE, count) if irregular else 0
    return Events(
        row=row,
        time=np.full(count, turn * PERIOD, np.int64) + late,
        channel=np.zeros(count, np.int64),
        value=generator.uniform(130, 150, count).astype(np.float32),
        variance=np.full(count, 9.0, np.float32),
        jump=np.full(count, -1, np.int64),
        keep=np.ones(count, np.float32),
        amount=np.zeros(count, np.float32),
    )
