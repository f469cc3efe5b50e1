"""What has a goal, measured beside its baseline in the same script on the same machine."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fedtwin_client.cohort import Examples
from fedtwin_client.randomness import Randomness
from fedtwin_client.training import train
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import Parameters
from fedtwin_shared.study import Participant, Study
from fedtwin_simulations.cohorts import Gathered, read_hospitals
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.demo import sign_study_file
from fedtwin_simulations.deployment import (
    coordinator_running,
    follow_study,
    hospitals_online,
    install,
    run_command,
)
from fedtwin_simulations.engine_bench import bench_engine
from fedtwin_simulations.ingest_bench import bench_ingest
from fedtwin_simulations.ledger_bench import bench_ledger
from fedtwin_simulations.monitor_bench import bench_monitor
from fedtwin_simulations.one_process import run_study
from fedtwin_simulations.plant_bench import bench_plant
from fedtwin_simulations.private_step_bench import bench_private_step
from fedtwin_simulations.results import Bench, BenchRow
from fedtwin_simulations.robustness import bench_robustness
from fedtwin_simulations.secagg_bench import bench_secagg
from fedtwin_simulations.specification import Experiment, draft_study, merge, read_experiment
from fedtwin_simulations.stock_baseline import time_stock_rounds
from fedtwin_simulations.store_bench import bench_store
from fedtwin_simulations.twin_acceptance import bench_twin_acceptance
from fedtwin_simulations.twin_bench import bench_twin
from fedtwin_simulations.virtual_hospitals import write_hospitals

ROUND_GOAL_SECONDS = 1.0
TASK_GOAL_MILLISECONDS = 2.0
ROUNDS = 20
STOCK_ROUNDS = 5  # each takes two polls of three seconds

Say = Callable[[str], None]


def run_bench(name: str, *, say: Say = lambda line: None) -> Bench:
    """Run the benchmark of that name. Raises `ConfigurationError` for another one."""
    if name not in BENCHES:
        raise ConfigurationError(field="bench", expected=f"one of {', '.join(BENCHES)}", found=repr(name))
    return BENCHES[name](say)


def bench_round(say: Say) -> Bench:
    """Measure a round of the real deployment beside stock Flower's, and a task's cost in the one-process runtime."""
    experiment = tiny_experiment()
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        write_hospitals(Path(folder) / "files")
        gathered = read_hospitals({site: Path(folder) / "files" / site for site in experiment.sites})
        say("one process: what a task costs beside its training")
        overhead = time_task_overhead(experiment, gathered)
        say(f"four hospitals as real processes, {ROUNDS} rounds")
        ours = time_real_rounds(experiment, Path(folder), say=say)
        say(f"stock Flower, {STOCK_ROUNDS} rounds")
        stock = time_stock_rounds(Path(folder) / "stock", nodes=len(experiment.sites), rounds=STOCK_ROUNDS)
    median = statistics.median(ours)
    return Bench(
        bench="round",
        rows=(
            BenchRow(
                case="a round, 4 sites on loopback, TLS, node authentication, tiny model: median",
                ours=median,
                baseline=statistics.median(stock),
                baseline_name="stock Flower: subprocess isolation, its own polls",
                unit="s",
                goal=f"at most {ROUND_GOAL_SECONDS:g} s",
                holds=median <= ROUND_GOAL_SECONDS,
            ),
            BenchRow(
                case="a site's task in one process, beside the training itself: median of runs",
                ours=overhead,
                baseline=None,
                baseline_name="",
                unit="ms",
                goal=f"at most {TASK_GOAL_MILLISECONDS:g} ms",
                holds=overhead <= TASK_GOAL_MILLISECONDS,
            ),
        ),
    )


BENCHES: Mapping[str, Callable[[Say], Bench]] = {
    "round": bench_round,
    "store": bench_store,
    "ledger": bench_ledger,
    "ingest": bench_ingest,
    "private-step": bench_private_step,
    "plant": bench_plant,
    "engine": bench_engine,
    "twin-acceptance": bench_twin_acceptance,
    "twin": bench_twin,
    "monitor": bench_monitor,
    "secagg": bench_secagg,
    "robustness": bench_robustness,
}


def tiny_experiment() -> Experiment:
    """Return the virtual experiment with more rounds than it needs and nothing evaluated on the way."""
    experiment = read_experiment("virtual")
    changes = {"training": {"rounds": ROUNDS, "average_from_round": 0}, "evaluation": {"rounds": []}}
    return experiment.model_copy(update={"study": merge(experiment.study, changes)})


def time_task_overhead(experiment: Experiment, gathered: Gathered, *, repeats: int = 5) -> float:
    """Return milliseconds for each site task of a run that are not spent in training: median over runs."""
    consortium = make_consortium(experiment.sites)
    entry = next(entry for entry in experiment.methods if entry.method == "federated")
    study = draft_study(experiment, entry, consortium.roster)
    cohorts = {site: gathered.cohort(study, site, gathered.parts(study)) for site in gathered.sites}
    inside = 0.0

    def timed(
        study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        nonlocal inside
        began = time.perf_counter()
        trained = train(study, participant, parameters, examples, randomness)
        inside += time.perf_counter() - began
        return trained

    found = []
    for repeat in range(repeats + 1):
        inside, began = 0.0, time.perf_counter()
        outcome = run_study(study, consortium, cohorts, seed=repeat, train=timed)
        tasks = sum(len(record.sites) for record in outcome.state.history)
        found.append((time.perf_counter() - began - inside) / tasks * 1000)
    return statistics.median(found[1:])  # the first one warms up


def time_real_rounds(experiment: Experiment, folder: Path, *, say: Say) -> list[float]:
    """Return seconds of every training round of a real deployment, as its coordinator wrote them down."""
    deployment = install(
        folder / "consortium",
        experiment.sites,
        maximum_epsilon=experiment.demo_epsilon,
        maximum_delta=experiment.delta,
    )
    for node in deployment.nodes:
        shutil.copytree(folder / "files" / node.site, node.directory / "data", dirs_exist_ok=True)
    with coordinator_running(deployment, logs=folder / "logs"):
        signed = sign_study_file(experiment, deployment)
        for node in deployment.nodes:
            run_command("client", "approve", node.directory, signed, "--yes")
        with hospitals_online(deployment, logs=folder / "logs"):
            run = follow_study(deployment, signed, say=say)
    progress = (deployment.coordinator / "runs" / run / "progress.jsonl").read_text(encoding="utf-8")
    entries = [json.loads(line) for line in progress.splitlines()]
    return [entry["seconds"] for entry in entries if entry.get("task") == "train"]
