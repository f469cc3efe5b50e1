"""`fedtwin simulate ablation NAME --data FOLDER`: which refinements of private descent help, all at equal ε.

Every line is the experiment's own private study with one thing changed, on the same folds. Noise multipliers are the
accountant's for what the line runs, at the δ that plans are priced at; what a line spends before training it does not
have for training. Folds are dealt by seeds other than those of the experiment's own table, so that what is chosen here
is not chosen on what is shown there. A refinement that gains no more than its standard error has no place in the
product.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich import box
from rich.table import Table

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.study import Study
from fedtwin_simulations.cohorts import Gathered, Parts, read_hospitals
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.linear_descent import DECAY, MOMENTUM, QUANTILE, Array, Problem, Recipe, Site, as_inputs, train
from fedtwin_simulations.scores import Scored, measure, pool
from fedtwin_simulations.single_run import with_virtual_sites
from fedtwin_simulations.sources import deal_patients, write_hospitals
from fedtwin_simulations.specification import (
    POOLED,
    Dataset,
    Experiment,
    Figure,
    MethodEntry,
    Metric,
    Partition,
    draft_study,
)
from fedtwin_simulations.virtual_hospitals import list_case_mixes
from fedtwin_simulations.virtual_hospitals import write_hospitals as write_virtual

# No table of an experiment is made of these seeds.
CHOICE: Final[Mapping[Dataset, Partition]] = {
    "heart": Partition(rule="resplit", seeds=tuple(range(100, 116))),
    "eicu": Partition(rule="folds", folds=5, seeds=(0, 1, 2, 3)),
    "physionet2012": Partition(rule="folds", folds=5, seeds=(0, 20, 21)),
    "virtual": Partition(rule="hash", seeds=(100, 101, 102)),
    "virtual-large": Partition(rule="hash", seeds=(100, 101, 102)),
}
START_STEPS, START_RATE, START_DECAY = 300, 1.0, 0.01  # of training on virtual patients, without privacy


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One recipe's figures. values[seeds]; gain: mean difference to the base line on the same folds, ± its error."""

    name: str
    values: tuple[float, ...]
    gain: float
    error: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))


def list_recipes(study: Study) -> tuple[Recipe, ...]:
    """Return the study's own recipe, and that recipe with one thing changed at a time.

    Raises `ConfigurationError` unless the study is logistic regression by plain descent with one step a round.
    """
    training = study.training
    plain = training.algorithm == "fedavg" and training.local_steps == 1 and training.momentum == 0
    if study.model.name != "logistic" or study.model.mask_as_input or not plain or study.features.windows != 1:
        raise ConfigurationError(
            field="study", expected="logistic regression of one window by fedavg, one step a round", found="another"
        )
    base = Recipe(
        name="as packaged",
        rounds=training.rounds,
        learning_rate=training.learning_rate * training.server_learning_rate,
        weight_decay=training.weight_decay,
        clip=study.privacy.clip,
        sampling_rate=study.privacy.sampling_rate,
    )
    changes: dict[str, dict[str, Any]] = {
        "a third of the rounds, steps three times as long": _paced(base, rounds=1 / 3, step=3),
        "three times the rounds, steps a third": _paced(base, rounds=3, step=1 / 3),
        "three times the rounds, the same steps": _paced(base, rounds=3, step=1),
        "a quarter of patients a step, four times the rounds": _paced(base, rounds=4, step=1 / 4)
        | {"sampling_rate": base.sampling_rate / 4},
        "noise falling to a third": {"schedule": -math.log(3)},
        "noise rising threefold": {"schedule": math.log(3)},
        f"momentum {MOMENTUM:g} after noise": _paced(base, rounds=1, step=1 - MOMENTUM) | {"momentum": MOMENTUM},
        f"momentum {MOMENTUM:g} after noise, three times the rounds": _paced(base, rounds=3, step=1 - MOMENTUM)
        | {"momentum": MOMENTUM},
        "Adam after noise, rate 0.1": {"adam": True, "learning_rate": 0.1},
        "the last model instead of the mean of the later half": {"average": "last"},
        f"exponential average, {DECAY:g} a round": {"average": "exponential"},
        "clip half as large": {"clip": study.privacy.clip / 2},
        "clip twice as large": {"clip": study.privacy.clip * 2},
        "clip by public rule: √inputs ÷ 2": {"clip": "rule"},
        f"clip at a charged quantile, {QUANTILE:g}": {"clip": "quantile"},
        "started from virtual patients": {"start": "virtual"},
        "noise shared by the sites": {"noise": "distributed"},
    }
    return (base, *(replace(base, name=name, **change) for name, change in changes.items()))


def _paced(base: Recipe, *, rounds: float, step: float) -> dict[str, Any]:
    """Return so many times the rounds, of steps so many times as long."""
    return {"rounds": max(1, round(rounds * base.rounds)), "learning_rate": step * base.learning_rate}


def choose_entry(experiment: Experiment, epsilon: float | None) -> MethodEntry:
    """Return the primary private method of that ε, or of the demo's. Raises `ConfigurationError`."""
    wanted = experiment.demo_epsilon if epsilon is None else epsilon
    private = [entry for entry in experiment.methods if entry.primary and entry.epsilon is not None]
    for entry in private:
        if entry.epsilon == wanted:
            return entry
    known = ", ".join(f"{entry.epsilon:g}" for entry in private)
    raise ConfigurationError(field="--epsilon", expected=f"one of {known}", found=f"{wanted:g}")


def run_ablation(
    experiment: Experiment, entry: MethodEntry, *, data: Path | None, on_progress: Callable[[int, int], None]
) -> tuple[Line, ...]:
    """Run every recipe of the entry's study and return its lines, the packaged one first.

    Raises `ConfigurationError` for a study that `list_recipes` refuses, and where the set is not in `data`.
    """
    consortium = make_consortium([*experiment.sites, POOLED])
    study = draft_study(experiment, entry, consortium.roster)
    recipes, partition = list_recipes(study), CHOICE[experiment.dataset]
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as scratch:
        folder = Path(scratch)
        write_hospitals(experiment.dataset, data, folder)
        gathered = read_hospitals({site: folder / site for site in experiment.sites})
        problem = state_problem(study, entry, start=learn_start(study, folder / "virtual"))
    values: dict[str, list[float]] = {recipe.name: [] for recipe in recipes}
    for position, seed in enumerate(partition.seeds):
        folds = [
            deal_sites(study, gathered, parts)
            for parts in deal_patients(
                experiment, partition, seed, data=data, gathered=gathered, roster=consortium.roster
            )
        ]
        for number, recipe in enumerate(recipes):
            on_progress(position * len(recipes) + number, len(partition.seeds) * len(recipes))
            found = [train(sites, recipe, problem, seed=(seed, fold)) for fold, sites in enumerate(folds)]
            values[recipe.name].append(measure_figure(folds, found, experiment.metrics[0], experiment.figure))
    on_progress(len(partition.seeds) * len(recipes), len(partition.seeds) * len(recipes))
    return compare(values)


def state_problem(study: Study, entry: MethodEntry, *, start: Array) -> Problem:
    """Return the plan's constants."""
    assert entry.epsilon is not None
    return Problem(
        epsilon=entry.epsilon,
        delta=study.privacy.delta,
        patients=np.array([part.patients for part in study.participants], float),
        weights=np.array([part.weight for part in study.participants]),
        positive_weight=study.training.positive_weight,
        start=start,
    )


def deal_sites(study: Study, gathered: Gathered, parts: Parts) -> list[Site]:
    """Return one fold's patients."""
    sites = []
    for name in gathered.sites:
        cohort = gathered.cohort(study, name, parts)
        (x, y), (test_x, test_y) = as_inputs(cohort.train), as_inputs(cohort.test)
        sites.append(Site(x=x, y=y, test_x=test_x, test_y=test_y, test_patients=cohort.test.patients))
    return sites


def learn_start(study: Study, folder: Path) -> Array:
    """Return weights[inputs + 1] learned on virtual patients and their deterioration, of no site's data.

    - what virtual patients do not have starts at zero: a site's indicator, an input never charted
    """
    cases = list_case_mixes(4)
    write_virtual(folder, count=len(cases))
    document = with_virtual_sites(study.model_dump(), len(cases)) | {"outcome": "deteriorated"}
    virtual = Study.model_validate(document)
    gathered = read_hospitals({case.site: folder / case.site for case in cases})
    everybody = [gathered.examples(virtual, case.site) for case in cases]
    names = [name for _ in range(study.features.steps) for name in study.feature_names()]
    theirs = [name for _ in range(study.features.steps) for name in virtual.feature_names()]
    x = np.concatenate([as_inputs(part)[0] for part in everybody])
    y = np.concatenate([part.y for part in everybody]).astype(np.float64)
    weights = np.zeros(x.shape[1])
    for _ in range(START_STEPS):
        slope = (1 / (1 + np.exp(-(x @ weights))) - y) @ x / len(y)
        slope[:-1] += START_DECAY * weights[:-1]
        weights = weights - START_RATE * slope
    shared = [not name.startswith("site=") for name in names]
    kept = [not name.startswith("site=") for name in theirs]
    start = np.zeros(len(names) + 1)
    start[:-1][shared] = weights[:-1][kept]
    return start


def measure_figure(sites: Sequence[Sequence[Site]], weights: Sequence[Array], metric: Metric, figure: Figure) -> float:
    """Return the experiment's figure of one seed: every fold's test patients scored by that fold's weights."""
    by_site: list[list[Scored]] = [[] for _ in sites[0]]
    for fold, found in zip(sites, weights, strict=True):
        for number, site in enumerate(fold):
            scores = 1 / (1 + np.exp(-(site.test_x @ found)))
            by_site[number].append(Scored(patients=site.test_patients, scores=scores, outcomes=site.test_y))
    pooled = [pool(parts) for parts in by_site]
    if figure == "overall":
        return float(getattr(measure(pool(pooled)), metric))
    return float(np.mean([getattr(measure(part), metric) for part in pooled]))


def compare(values: Mapping[str, Sequence[float]]) -> tuple[Line, ...]:
    """Return a line for each recipe; the first is what all are compared with."""
    base = np.array(next(iter(values.values())))
    lines = []
    for name, found in values.items():
        gain = np.array(found) - base
        error = float(gain.std(ddof=1) / math.sqrt(len(gain))) if len(gain) > 1 else math.nan
        lines.append(Line(name=name, values=tuple(found), gain=float(gain.mean()), error=error))
    return tuple(lines)


def ablation_table(title: str, lines: Sequence[Line], metric: Metric) -> Table:
    """Return the lines as a table."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("changed", overflow="fold")
    for name in (metric, "gain", "± error", "helps"):
        table.add_column(name, justify="right")
    for line in lines:
        first = line is lines[0]
        table.add_row(
            line.name,
            f"{line.mean:.4f}",
            "" if first else f"{line.gain:+.4f}",
            "" if first else f"{line.error:.4f}",
            ""
            if first
            else "yes"
            if line.gain > 2 * line.error
            else "no"
            if line.gain < -2 * line.error
            else "as good",
        )
    return table
