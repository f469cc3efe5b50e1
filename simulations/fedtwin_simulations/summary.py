"""From what every job gave to the rows of a table, the figures to compare with, and what ε counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedtwin_shared.histogram import Counts, Metrics, add_histograms, bin_centres, compute_metrics
from fedtwin_shared.privacy import CAVEAT
from fedtwin_simulations.comparison import Trial
from fedtwin_simulations.datasets import eicu
from fedtwin_simulations.jobs import Job
from fedtwin_simulations.results import Reference, Row
from fedtwin_simulations.scores import (
    Scored,
    bootstrap_interval,
    choose_threshold,
    majority_accuracy,
    measure,
    measure_event,
    pool,
)
from fedtwin_simulations.specification import Experiment, Metric

HISTOGRAM_SUFFIX = "_histogram"
EVENT = "event1"
_NAMES = {"distributed": "noise shared by the sites"}

Trials = Mapping[Job, Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One metric under one seed: of everybody's scores, and by site; NaN where it is not defined."""

    overall: float
    sites: Mapping[str, float]

    @property
    def site_mean(self) -> float:
        """Mean over the sites where the metric is defined."""
        defined = [value for value in self.sites.values() if not math.isnan(value)]
        return float(np.mean(defined)) if defined else math.nan


def summarise(experiment: Experiment, trials: Trials) -> tuple[Row, ...]:
    """Return the rows: by partition, method and metric, exact figures first, noised histograms after them."""
    rows: list[Row] = []
    for number, partition in enumerate(experiment.partitions):
        for index, entry in enumerate(experiment.methods):
            folds = _by_seed(trials, number, index)
            for position, metric in enumerate(experiment.metrics):
                figures = {seed: exact_figures(metric, own) for seed, own in folds.items()}
                name = metric + partition.suffix
                primary = entry.primary and number == 0 and position == 0
                rows.append(_row(experiment, folds, figures, metric=name, primary=primary))
                if entry.method == "private" and metric != EVENT:
                    noised = {seed: histogram_figures(metric, own) for seed, own in folds.items()}
                    rows.append(_row(experiment, folds, noised, metric=name + HISTOGRAM_SUFFIX, primary=False))
    return tuple(rows)


def exact_figures(metric: Metric, folds: Sequence[Trial]) -> Figures:
    """Return a metric of the exact scores; each fold's test patients are scored by that fold's model."""
    prepare: Callable[[Trial, Scored], Scored] = _call if metric == EVENT else lambda trial, scored: scored
    sites = {site: pool([prepare(trial, trial.test[site]) for trial in folds]) for site in folds[0].test}
    value: Callable[[Scored], float] = (
        _measure_calls if metric == EVENT else lambda part: getattr(measure(part), metric)
    )
    return Figures(overall=value(pool(list(sites.values()))), sites={site: value(part) for site, part in sites.items()})


def histogram_figures(metric: Metric, folds: Sequence[Trial]) -> Figures:
    """Return a metric of the released histograms, added up over folds."""
    centres = bin_centres(folds[0].study.evaluation)

    def value(counts: Sequence[Counts]) -> float:
        metrics: Metrics = compute_metrics(add_histograms(counts), centres)
        return float(getattr(metrics, metric))

    sites = sorted(folds[0].histograms)
    return Figures(
        overall=value([trial.histograms[site] for trial in folds for site in sites]),
        sites={site: value([trial.histograms[site] for trial in folds]) for site in sites},
    )


def _call(trial: Trial, test: Scored) -> Scored:
    """Return 1 for test patients above the threshold that is best on the fold's own training patients, else 0."""
    threshold = choose_threshold(pool(list(trial.train.values())))
    return Scored(patients=test.patients, scores=(test.scores >= threshold).astype(np.float64), outcomes=test.outcomes)


def _measure_calls(calls: Scored) -> float:
    return measure_event(calls, 0.5)


def _by_seed(trials: Trials, partition: int, method: int) -> dict[int, list[Trial]]:
    found: dict[int, list[Trial]] = {}
    for job in sorted(trials, key=lambda job: (job.seed, job.fold)):
        if (job.partition, job.method) == (partition, method):
            found.setdefault(job.seed, []).append(trials[job])
    return found


def _row(
    experiment: Experiment,
    folds: Mapping[int, Sequence[Trial]],
    figures: Mapping[int, Figures],
    *,
    metric: str,
    primary: bool,
) -> Row:
    trial = next(iter(folds.values()))[0]
    entry, study = trial.entry, trial.study
    every = list(figures.values())
    shown = {str(seed): getattr(one, experiment.figure) for seed, one in figures.items()}
    return Row(
        method=entry.method,
        algorithm=study.training.algorithm,
        model=", ".join(filter(None, (study.model.name, entry.variant, _NAMES.get(entry.noise)))),
        noise=entry.noise if entry.method == "private" else "none",
        epsilon=entry.epsilon,
        delta=experiment.delta if entry.method == "private" else None,
        metric=metric,
        primary=primary,
        overall=_mean([one.overall for one in every]),
        site_mean=_mean([one.site_mean for one in every]),
        per_site={site: _mean([one.sites[site] for one in every]) for site in every[0].sites},
        per_seed=shown,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def list_references(experiment: Experiment, trials: Trials, *, data: Path | None) -> tuple[Reference, ...]:
    """Return the published figures, and baselines computed on the very same test patients."""
    published = [
        Reference(name=one.name, metric=one.metric, value=one.value, source=one.source) for one in experiment.references
    ]
    computed: list[Reference] = []
    if experiment.metrics[0] == "accuracy":
        computed += [_majority(experiment, trials, number) for number in range(len(experiment.partitions))]
    if experiment.dataset == "eicu" and data is not None:
        computed += compare_with_apache(experiment, trials, eicu.apache_predictions(data))
    return (*published, *computed)


def _majority(experiment: Experiment, trials: Trials, partition: int) -> Reference:
    own = [trial for job, trial in trials.items() if (job.partition, job.method) == (partition, 0)]
    values = [majority_accuracy(trial.train[site], trial.test[site]) for trial in own for site in trial.test]
    return Reference(
        name="majority class of each site",
        metric="accuracy" + experiment.partitions[partition].suffix,
        value=_mean(values),
        source="the same training and test patients, mean of the sites",
    )


def compare_with_apache(experiment: Experiment, trials: Trials, apache: Mapping[str, float]) -> list[Reference]:
    """Return APACHE IVa's AUROC, ours on the same stays, and their difference with a paired bootstrap interval."""
    found: list[Reference] = []
    for index, entry in enumerate(experiment.methods):
        if entry.method != "federated":
            continue
        folds = next(iter(_by_seed(trials, 0, index).values()))
        ours = pool([scored for trial in folds for scored in trial.test.values()])
        rows = np.array([row for row, patient in enumerate(ours.patients) if patient in apache])
        outcomes, scores = ours.outcomes[rows], ours.scores[rows]
        theirs = np.array([apache[ours.patients[row]] for row in rows])
        found += _paired(outcomes, scores, theirs, name=entry.variant or "federated", with_theirs=not found)
    return found


def _paired(outcomes: Counts, ours: Counts, theirs: Counts, *, name: str, with_theirs: bool) -> list[Reference]:
    def auroc(scores: Counts, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
        return measure(Scored(patients=("",) * len(rows), scores=scores[rows], outcomes=outcomes[rows])).auroc

    def refer(title: str, statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.int64]]], float]) -> Reference:
        return Reference(
            name=title,
            metric="auroc",
            value=statistic(np.arange(len(outcomes))),
            source=f"{len(outcomes)} stays with a prediction of APACHE IVa, {int(outcomes.sum())} deaths",
            interval=bootstrap_interval(statistic, len(outcomes), generator=np.random.default_rng(0)),
        )

    found = [refer("APACHE IVa", lambda rows: auroc(theirs, rows))] if with_theirs else []
    found.append(refer(f"{name}, the same stays", lambda rows: auroc(ours, rows)))
    found.append(refer(f"{name} minus APACHE IVa, paired", lambda rows: auroc(ours, rows) - auroc(theirs, rows)))
    return found


def describe_policy(experiment: Experiment) -> tuple[str, ...]:
    """Return what ε counts in this experiment and what it does not."""
    return (
        f"ε is that of one fold's released model plus its evaluation, for one patient with all their records, at "
        f"δ = {experiment.delta:g}: {CAVEAT}.",
        "Every method, fold and seed has journals of its own; a real consortium could not print this table, because "
        "each line would be another release about the same patients.",
        "Exact scores of held-out patients exist in simulations only; metrics that end in "
        f"{HISTOGRAM_SUFFIX} are what a real study would have released.",
        *experiment.policy,
    )
