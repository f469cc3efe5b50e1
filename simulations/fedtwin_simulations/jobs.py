"""What an experiment consists of: one method on one fold under one seed, many times."""

from __future__ import annotations

from dataclasses import dataclass

from fedtwin_simulations.specification import Experiment, MethodEntry, Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method on one fold under one seed; `partition` and `method` are positions in the experiment."""

    partition: int
    method: int
    seed: int
    fold: int


def list_jobs(experiment: Experiment) -> tuple[Job, ...]:
    """Return every job of the experiment, each only once where seeds change nothing."""
    return tuple(
        Job(partition=number, method=index, seed=seed, fold=fold)
        for number, partition in enumerate(experiment.partitions)
        for index, entry in enumerate(experiment.methods)
        for seed in (partition.seeds if _depends_on_seed(experiment, partition, entry) else partition.seeds[:1])
        for fold in range(partition.folds if partition.rule == "folds" else 1)
    )


def _depends_on_seed(experiment: Experiment, partition: Partition, entry: MethodEntry) -> bool:
    """A seed draws folds, noise and samples; a fixed split without noise and without sampling has none of them."""
    rates = [changes.get("privacy", {}).get("sampling_rate") for changes in (entry.changes, experiment.study)]
    sampled = next((rate for rate in rates if rate is not None), 1.0) < 1
    return partition.rule in ("resplit", "folds") or entry.method == "private" or sampled
