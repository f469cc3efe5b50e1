"""The ablation's short cut against the protocol itself, its prices, and what its lines say."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.privacy import Mechanism, PrivacyEvent, accounted_delta, compute_epsilon
from fedtwin_simulations import ablation, linear_descent
from fedtwin_simulations.ablation import choose_entry, compare, deal_sites, list_recipes, measure_figure, state_problem
from fedtwin_simulations.cohorts import Gathered
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.linear_descent import Problem, Recipe, Site, noise_levels, train
from fedtwin_simulations.one_process import run_study
from fedtwin_simulations.specification import POOLED, MethodEntry, draft_study
from fedtwin_simulations.virtual_hospitals import CASE_MIXES, write_hospital
from tests.simulations.laboratory import SITES, small_experiment, small_gathered

RECIPE = Recipe(name="as packaged", rounds=6, learning_rate=2.0, weight_decay=0.01, clip=1.0)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Gathered:
    return small_gathered(tmp_path_factory.mktemp("hospitals"))


def made_up(sites: int = 3, *, patients: int = 40, inputs: int = 4) -> tuple[list[Site], Problem]:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=inputs + 1)

    def draw() -> tuple[Any, Any]:
        x = np.hstack([generator.normal(size=(patients, inputs)), np.ones((patients, 1))])
        return x, (x @ truth + generator.normal(size=patients) > 0).astype(float)

    parts = []
    for _ in range(sites):
        (x, y), (test_x, test_y) = draw(), draw()
        names = tuple(f"p{row}" for row in range(patients))
        parts.append(Site(x=x, y=y, test_x=test_x, test_y=test_y, test_patients=names))
    counts = np.full(sites, float(patients))
    problem = Problem(
        epsilon=3.0, delta=1e-4, patients=counts, weights=counts, positive_weight=1.0, start=np.zeros(inputs + 1)
    )
    return parts, problem


def test_the_base_line_is_what_the_protocol_trains(gathered: Gathered) -> None:
    """Noise too small to see: the released model of the real ServerApp and ClientApps, to float32's precision."""
    silent = 1e12
    changes = {"training": {"rounds": 5, "average_from_round": 3, "weight_decay": 0.01, "positive_weight": 2.0}}
    experiment = small_experiment(
        methods=[{"method": "private", "epsilon": silent, "changes": changes | {"privacy": {"clip": 0.7}}}]
    )
    entry, consortium = experiment.methods[0], make_consortium([*SITES, POOLED])
    study = draft_study(experiment, entry, consortium.roster)
    parts = gathered.parts(study)
    cohorts = {site: gathered.cohort(study, site, parts) for site in gathered.sites}
    outcome = run_study(study, consortium, cohorts, seed=0)
    sites = deal_sites(study, gathered, parts)
    problem = state_problem(study, entry, start=np.zeros(sites[0].x.shape[1]))
    found = train(sites, list_recipes(study)[0], problem, seed=(0,))
    expected = np.append(outcome.parameters["weight"], outcome.parameters["bias"])
    assert study.privacy.noise_multiplier < 1e-3
    assert found == pytest.approx(expected, abs=2e-3)
    assert np.abs(expected).max() > 0.1
    scores = measure_figure([sites], [found], "auroc", "overall")
    assert 0 < scores < 1


@pytest.mark.parametrize("schedule", [0.0, math.log(3), -1.0])
def test_every_schedule_costs_the_same(schedule: float) -> None:
    levels = noise_levels(replace(RECIPE, schedule=schedule), epsilon=2.0, delta=1e-4)
    assert levels[-1] / levels[0] == pytest.approx(math.exp(schedule))
    events = [PrivacyEvent(mechanism=Mechanism.GAUSSIAN, noise_multiplier=float(level)) for level in levels]
    assert 1.95 < compute_epsilon(events, delta=accounted_delta(1e-4)) <= 2.0001


def test_a_schedule_of_a_sampled_mechanism_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling_rate 1"):
        noise_levels(replace(RECIPE, schedule=1.0, sampling_rate=0.5), epsilon=2.0, delta=1e-4)


def test_what_finding_the_clip_costs_is_not_there_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def levels(recipe: Recipe, *, epsilon: float, delta: float) -> Any:
        asked.append(epsilon)
        return np.zeros(recipe.rounds)

    monkeypatch.setattr(linear_descent, "noise_levels", levels)
    sites, problem = made_up()
    for clip in (1.0, "rule", "quantile"):
        train(sites, replace(RECIPE, clip=clip), problem, seed=(0, 0))
    assert asked == [3.0, 3.0, pytest.approx(0.95 * 3.0)]


def test_recipes_change_one_thing_and_the_noise_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sites, problem = made_up()
    monkeypatch.setattr(  # the accountant takes seconds for every count and rate
        linear_descent, "calibrated_noise", lambda count, rate, epsilon, delta: 0.0 if epsilon > 1e6 else 5.0
    )
    study = draft_study(small_experiment(), small_experiment().methods[3], make_consortium([*SITES, POOLED]).roster)
    recipes = list_recipes(study)
    assert len({recipe.name for recipe in recipes}) == len(recipes) > 12
    silent = replace(problem, epsilon=1e12)
    exact = train(sites, RECIPE, silent, seed=(0,))
    noised = [train(sites, RECIPE, problem, seed=(seed,)) for seed in range(30)]
    shared = [train(sites, replace(RECIPE, noise="distributed"), problem, seed=(seed,)) for seed in range(30)]
    spread, less = (float(np.std(np.array(found) - exact)) for found in (noised, shared))
    assert spread / less == pytest.approx(math.sqrt(len(sites)), rel=0.25)
    for recipe in recipes:
        assert np.isfinite(train(sites, recipe, problem, seed=(1, 2))).all()
    average = train(sites, replace(RECIPE, average="exponential"), silent, seed=(0,))
    assert not np.allclose(average, exact)


def test_a_line_says_how_much_it_gains_on_the_same_folds() -> None:
    base, other = compare({"base": (0.5, 0.6, 0.7), "other": (0.6, 0.7, 0.8)})
    assert base.mean == pytest.approx(0.6)
    assert other.gain == pytest.approx(0.1)
    assert other.error == pytest.approx(0.0, abs=1e-12)


def test_a_start_from_virtual_patients_has_nothing_of_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gathered: Gathered
) -> None:
    experiment = small_experiment()
    study = draft_study(experiment, experiment.methods[3], make_consortium([*SITES, POOLED]).roster)
    cases = [replace(case, patients=60) for case in CASE_MIXES]
    monkeypatch.setattr(ablation, "list_case_mixes", lambda count: cases)

    def write(folder: Path, *, count: int) -> None:
        for case in cases:
            write_hospital(folder / case.site, case, seed=0)

    monkeypatch.setattr(ablation, "write_virtual", write)
    start = ablation.learn_start(study, tmp_path)
    names = [*study.feature_names(), "intercept"]
    assert {name for name, weight in zip(names, start, strict=True) if weight == 0} >= {
        name for name in names if name.startswith("site=")
    } | {"intercept"}
    assert start[names.index("heart_rate.mean")] > 0


def test_prices_and_studies_that_are_not_there_are_refused() -> None:
    experiment = small_experiment()
    assert choose_entry(experiment, None).epsilon == 3.0
    with pytest.raises(ConfigurationError, match=r"--epsilon: expected one of 3, found 7"):
        choose_entry(experiment, 7.0)
    entry = MethodEntry(method="private", epsilon=3.0, changes={"model": {"name": "mlp"}})
    study = draft_study(experiment, entry, make_consortium([*SITES, POOLED]).roster)
    with pytest.raises(ConfigurationError, match="logistic regression of one window"):
        list_recipes(study)
