"""Runs an experiment: every method on every fold of every seed, in one or two processes, and sums up.

Design note: a job is one method on one fold under one seed. Jobs know nothing of each other, so they run in any order
and in several processes, and the results are the same bits. A method without noise and without sampling gives the same
on every seed of a fixed split, so it runs once there.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from fedtwin_simulations.cohorts import Gathered, Parts, read_hospitals
from fedtwin_simulations.comparison import Trial, run_method
from fedtwin_simulations.consortium import Consortium, make_consortium
from fedtwin_simulations.jobs import Job, list_jobs
from fedtwin_simulations.results import Results, list_versions
from fedtwin_simulations.sources import deal_patients, write_hospitals
from fedtwin_simulations.specification import POOLED, Experiment
from fedtwin_simulations.summary import describe_policy, list_references, summarise

OnProgress = Callable[[int, int], None]  # jobs done, jobs in all


class Laboratory:
    """One process's hospitals in memory, and what it takes to run any job on them."""

    def __init__(self, experiment: Experiment, folders: Mapping[str, Path], *, data: Path | None) -> None:
        self.experiment = experiment
        self.folders, self.data = dict(folders), data
        self.gathered: Gathered = read_hospitals(folders)
        self.consortium: Consortium = make_consortium([*experiment.sites, POOLED])
        self._dealt: dict[tuple[int, int], Sequence[Parts]] = {}

    def parts(self, partition: int, seed: int) -> Sequence[Parts]:
        """Return the folds of one seed."""
        key = partition, seed
        if key not in self._dealt:
            self._dealt[key] = deal_patients(
                self.experiment,
                self.experiment.partitions[partition],
                seed,
                data=self.data,
                gathered=self.gathered,
                roster=self.consortium.roster,
            )
        return self._dealt[key]

    def run(self, job: Job) -> Trial:
        """Run one job."""
        parts = self.parts(job.partition, job.seed)[job.fold]
        entry = self.experiment.methods[job.method]
        return run_method(self.experiment, entry, self.gathered, parts, self.consortium, seed=job.seed, fold=job.fold)


def run_experiment(
    experiment: Experiment, *, data: Path | None = None, workers: int = 1, on_progress: OnProgress = lambda *_: None
) -> Results:
    """Run the experiment on the public set in `data` (or the virtual hospitals) and return its results.

    Raises `ConfigurationError`, `DatasetError` before anything is run.

    - the results do not depend on `workers`
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        write_hospitals(experiment.dataset, data, Path(folder))
        laboratory = Laboratory(experiment, {site: Path(folder) / site for site in experiment.sites}, data=data)
        trials = run_jobs(laboratory, list_jobs(experiment), workers=workers, on_progress=on_progress)
    return Results(
        study=experiment.name,
        versions=list_versions(),
        seeds=tuple(sorted({job.seed for job in trials})),
        results=summarise(experiment, trials),
        references=list_references(experiment, trials, data=data),
        seconds=time.monotonic() - began,
        policy=describe_policy(experiment),
    )


def run_jobs(
    laboratory: Laboratory, jobs: Sequence[Job], *, workers: int = 1, on_progress: OnProgress = lambda *_: None
) -> dict[Job, Trial]:
    """Return what every job gave, in the order of `jobs`.

    - the result does not depend on `workers`
    """
    trials: dict[Job, Trial] = {}
    on_progress(0, len(jobs))
    for job, trial in _run_each(laboratory, jobs, workers=workers):
        trials[job] = trial
        on_progress(len(trials), len(jobs))
    return {job: trials[job] for job in jobs}


def _run_each(laboratory: Laboratory, jobs: Sequence[Job], *, workers: int) -> Iterator[tuple[Job, Trial]]:
    """Yield every job's trial as it ends. Workers are processes: Flower's task identity is one for each process."""
    if workers <= 1:
        for job in jobs:
            yield job, laboratory.run(job)
        return
    context = multiprocessing.get_context("spawn")  # a fork would take torch's threads and locks along
    arguments = laboratory.experiment, laboratory.folders, laboratory.data
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_open_laboratory, initargs=arguments) as pool:
        running = {pool.submit(_run_here, job): job for job in jobs}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_here: list[Laboratory] = []  # the one laboratory of a worker process


def _open_laboratory(experiment: Experiment, folders: Mapping[str, Path], data: Path | None) -> None:
    _here[:] = [Laboratory(experiment, folders, data=data)]


def _run_here(job: Job) -> Trial:
    return _here[0].run(job)
