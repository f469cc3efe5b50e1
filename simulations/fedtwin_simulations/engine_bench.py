"""What a site's task costs in the engine beside the bare training loop, and how many hospitals fit into minutes.

Design note: the bare loop trains and evaluates the same sites on the same patients with the same functions, and
averages the results: no message, no signature, no charge. All sides run in this process, in turn, on one core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedtwin_client.evaluation import release_histogram
from fedtwin_client.training import train
from fedtwin_shared.documents import check_document
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.study import ModelName, Study
from fedtwin_simulations.consortium import Consortium, make_consortium
from fedtwin_simulations.engine.memory import watch_memory
from fedtwin_simulations.engine.simulation import simulate
from fedtwin_simulations.engine.site_data import DrawnData
from fedtwin_simulations.engine.site_tasks import Ground, choose_together
from fedtwin_simulations.results import Bench, BenchRow
from fedtwin_simulations.seeded_randomness import SeededRandomness
from fedtwin_simulations.specification import set_price

SIGNALS = (
    "heart_rate",
    "mean_pressure",
    "respiratory_rate",
    "pulse_oximetry",
    "temperature",
    "lactate",
    "creatinine",
    "glucose",
)
TOGETHER_GOAL, ALONE_GOAL, RAY_GOAL = 1.1, 1.5, 20.0
LSTM_GOAL_SECONDS, LOGISTIC_GOAL_SECONDS, GOAL_BYTES = 300.0, 180.0, 4 << 30
REPEATS, WORKERS = 3, 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A study over hospitals that are drawn: `sites` of `patients` training patients, a step an hour long."""

    sites: int
    model: ModelName = "mlp"
    patients: int = 100
    steps: int = 24
    features: int = 8
    hidden: int = 16
    rounds: int = 3
    local_steps: int = 2
    private: bool = True

    def make_ground(self, *, seed: int = 0) -> Ground:
        """Return the study over its hospitals, each alone."""
        names = tuple(f"hospital-{number}" for number in range(1, self.sites + 1))
        consortium = make_consortium(names, seed=seed)
        return Ground(
            study=make_study(self, consortium),
            consortium=consortium,
            data=DrawnData(sites=names, seed=seed, train=self.patients, test=max(1, self.patients // 4)),
            seed=seed,
        )


def make_study(case: Case, consortium: Consortium) -> Study:
    """Return the case's study, at ε = 3 and δ = 1e-5 where it is private."""
    document = {
        "name": "drawn",
        "version": 1,
        "question": "Can hospitals that do not exist be trained quickly?",
        "outcome": "deteriorated",
        "roster": consortium.roster.digest,
        "participants": [
            {"site": site.name, "patients": case.patients, "weight": float(case.patients)}
            for site in consortium.roster.sites
        ],
        "cohort": {"minimum_patients": 1},
        "features": {
            "window_hours": float(case.steps),
            "step_hours": 1.0,
            "series": [{"signal": signal} for signal in SIGNALS[: case.features]],
        },
        "model": {"name": case.model, "hidden": case.hidden},
        "training": {
            "rounds": case.rounds,
            "local_steps": case.local_steps,
            "learning_rate": 0.5,
            "minimum_sites": case.sites,
        },
        "privacy": {"clip": 1.0},
        "evaluation": {},
    }
    set_price(document, epsilon=3.0 if case.private else None, delta=1e-5)
    return check_document(document, Study, file="benchmark")


def run_bare(ground: Ground) -> Parameters:
    """Train and evaluate as the engine does, without anything around it; the last mean of models."""
    study, data = ground.study, ground.data
    parameters: Parameters = initialise(study)
    chance = {site: SeededRandomness(seed=ground.seed, site=site) for site in data.sites}
    for _ in range(study.training.rounds):
        total: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = {}
        for site in data.sites:
            participant = study.participant(site)
            assert participant is not None
            trained = train(study, participant, parameters, data.read(study, site).train, chance[site])
            total = {name: total.get(name, 0.0) + array.astype(np.float64) for name, array in trained.items()}
        parameters = {name: (array / len(data.sites)).astype(np.float32) for name, array in total.items()}
    for site in data.sites:
        release_histogram(study, parameters, data.read(study, site).test, chance[site])
    return parameters


def measure_task(case: Case, *, repeats: int = REPEATS) -> dict[str, float]:
    """Return milliseconds for each site task, CPU time, median of repeats: `bare`, `alone` and `together`."""
    ground = case.make_ground()
    together = replace(ground, together=choose_together(ground.study, case.patients))
    tasks = case.sites * (case.rounds + 1)
    sides: Mapping[str, Callable[[], object]] = {
        "bare": lambda: run_bare(ground),
        "alone": lambda: simulate(ground),
        "together": lambda: simulate(together),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    warm = Case(sites=2, **{name: getattr(case, name) for name in Case.__slots__ if name != "sites"}).make_ground()
    run_bare(warm)
    simulate(warm)
    for _ in range(repeats):
        for name, side in sides.items():
            began = time.process_time()
            side()
            found[name].append((time.process_time() - began) / tasks * 1000)
    return {name: statistics.median(times) for name, times in found.items()}


def bench_engine(say: Say) -> Bench:
    """Measure site tasks beside the bare loop, then the two large consortia of the goals."""
    rows: list[BenchRow] = []
    for sites in (100, 1000):
        say(f"{sites} sites, mlp of 16 units, 24 steps of 8 features, 100 patients: bare loop, alone, together")
        found = measure_task(Case(sites=sites), repeats=REPEATS if sites < 1000 else 1)
        rows += [_row_task(sites, found, "together", TOGETHER_GOAL), _row_task(sites, found, "alone", ALONE_GOAL)]
    say("1,000 hospitals of 100 patients, private LSTM, 5 rounds")
    large = Case(sites=1000, model="lstm", steps=48, hidden=32, rounds=5)
    rows += _time_large(
        large, "1,000 hospitals, 100 patients, T=48, F=8, H=32, 2 private steps, 5 rounds", LSTM_GOAL_SECONDS
    )
    say("10,000 hospitals, logistic, 10 rounds")
    many = Case(sites=10_000, model="logistic", steps=1, rounds=10, local_steps=1)
    rows += _time_large(many, "10,000 hospitals, 100 patients, private logistic, 10 rounds", LOGISTIC_GOAL_SECONDS)
    return Bench(bench="engine", rows=tuple(rows))


def _row_task(sites: int, found: Mapping[str, float], side: str, goal: float) -> BenchRow:
    return BenchRow(
        case=f"a site's task, {sites:,} sites {'trained together' if side == 'together' else 'alone'}: CPU",
        ours=found[side],
        baseline=found["bare"],
        baseline_name="bare training loop",
        unit="ms",
        goal=f"at most {goal:g} × bare",
        holds=found[side] <= goal * found["bare"],
    )


def _time_large(case: Case, title: str, goal_seconds: float) -> tuple[BenchRow, BenchRow]:
    """Return the wall-clock time with two worker processes, and the most memory that all of them took."""
    ground = case.make_ground()
    ground = replace(ground, together=choose_together(ground.study, case.patients))
    with watch_memory() as most:
        began = time.monotonic()
        simulate(ground, workers=WORKERS)
        seconds = time.monotonic() - began
    return (
        BenchRow(
            case=f"{title}: whole run",
            ours=seconds,
            baseline=None,
            baseline_name="",
            unit="s",
            goal=f"at most {goal_seconds:g} s",
            holds=seconds <= goal_seconds,
        ),
        BenchRow(
            case=f"{title}: most memory, all processes",
            ours=most() / 2**30,
            baseline=None,
            baseline_name="",
            unit="GiB",
            goal=f"at most {GOAL_BYTES / 2**30:g} GiB",
            holds=most() <= GOAL_BYTES,
        ),
    )
