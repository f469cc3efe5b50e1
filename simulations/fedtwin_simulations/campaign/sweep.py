"""Tuning a case of a campaign with Optuna: on virtual patients of other seeds, so that nobody's budget is touched.

Design note: tuning on patients is another release about them, which a real study would have to charge. Here every
patient is virtual, and those who are tuned on are not those whose figures the campaign reports.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.campaign.specification import Campaign, Case, Measure
from fedtwin_simulations.campaign.trials import KINDS, WORLDS, OnProgress, RunTrial
from fedtwin_simulations.specification import merge

JOURNAL = "sweep.log"
LOWER_IS_BETTER: frozenset[Measure] = frozenset(
    (
        "brier",
        "calibration_error",
        "group_gap",
        "waited_hours",
        "seconds",
        "recovered",
        "reconstruction_error",
        "attack_auroc",
        "attack_advantage",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best of a sweep: values by path in the study, the primary measure, and how many trials there were."""

    values: Mapping[str, float]
    figure: float
    trials: int


def run_sweep(
    campaign: Campaign,
    case: Case,
    folder: Path,
    *,
    on_progress: OnProgress = lambda done, every: None,
    run_trial: RunTrial | None = None,
) -> Best:
    """Try `campaign.sweep.trials` settings of the case and return the best by the campaign's first measure.

    Raises `ConfigurationError` where the campaign has no `[sweep]`.

    - a sweep that was interrupted goes on where it stopped, and the same campaign and folder give the same settings
    """
    sweep = campaign.sweep
    if sweep is None:
        raise ConfigurationError(file=campaign.name, field="sweep", expected="seeds, trials and a space", found="none")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    measure = campaign.measures[0]
    study = optuna.create_study(
        study_name=f"{campaign.digest[:16]} {case.name}",
        storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
        direction="minimize" if measure in LOWER_IS_BETTER else "maximize",
        load_if_exists=True,
    )
    objective = _make_objective(campaign, case, folder, run_trial or KINDS[campaign.kind])
    for number in range(len(study.trials), sweep.trials):
        # A sampler of its own for every trial: a resumed sweep draws what an uninterrupted one draws.
        study.sampler = optuna.samplers.TPESampler(seed=sweep.seeds[0] + number)
        study.optimize(objective, n_trials=1)
        on_progress(number + 1, sweep.trials)
    best = study.best_trial
    assert best.value is not None
    return Best(
        values={name: float(value) for name, value in best.params.items()}, figure=best.value, trials=len(study.trials)
    )


def _make_objective(
    campaign: Campaign, case: Case, folder: Path, run_trial: RunTrial
) -> Callable[[optuna.Trial], float]:
    assert campaign.sweep is not None
    sweep = campaign.sweep

    def objective(trial: optuna.Trial) -> float:
        changes = dict(case.changes)
        for path, span in sweep.space.items():
            value = trial.suggest_float(path, span.low, span.high, log=span.log)
            changes = merge(changes, _nest(path, value))
        tried = case.model_copy(update={"changes": changes})
        found = [
            run_trial(campaign, tried, seed, folder / WORLDS)["figures"][campaign.measures[0]] for seed in sweep.seeds
        ]
        known = [value for value in found if not math.isnan(value)]
        if not known:
            raise optuna.TrialPruned
        return statistics.fmean(known)

    return objective


def _nest(path: str, value: float) -> dict[str, Any]:
    """Return tables within tables.

    >>> _nest("training.learning_rate", 0.5)
    {'training': {'learning_rate': 0.5}}
    """
    first, dot, rest = path.partition(".")
    return {first: _nest(rest, value) if dot else value}
