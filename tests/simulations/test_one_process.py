"""A study in one process: the real apps, real journals in memory, and figures that add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtwin_client.cohort import Cohort
from fedtwin_client.evaluation import score
from fedtwin_client.journal import Spend
from fedtwin_server.errors import RunError
from fedtwin_shared.histogram import bin_edges, count_scores
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.study import Study
from fedtwin_simulations.consortium import Consortium, make_consortium
from fedtwin_simulations.one_process import Outcome, run_study
from fedtwin_simulations.specification import POOLED, draft_study
from tests.simulations.laboratory import SITES, small_experiment, small_gathered


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cohort]:
    gathered = small_gathered(tmp_path_factory.mktemp("hospitals"))
    study = make_study(private=False)[0]
    return {site: gathered.cohort(study, site, gathered.parts(study)) for site in SITES}


def make_study(*, private: bool) -> tuple[Study, Consortium]:
    experiment, consortium = small_experiment(), make_consortium([*SITES, POOLED])
    return draft_study(experiment, experiment.methods[3 if private else 2], consortium.roster), consortium


def run(cohorts: dict[str, Cohort], *, private: bool, seed: int = 0) -> Outcome:
    study, consortium = make_study(private=private)
    return run_study(study, consortium, cohorts, seed=seed)


def test_a_study_learns_and_every_site_is_charged_for_what_ran(cohorts: dict[str, Cohort]) -> None:
    outcome = run(cohorts, private=False)
    assert outcome.spent == dict.fromkeys(SITES, Spend(steps=4, releases=2))
    assert digest_parameters(outcome.parameters) != digest_parameters(initialise(outcome.study))
    assert set(outcome.state.histograms) == {2, 4}


def test_without_noise_the_histograms_count_the_exact_scores(cohorts: dict[str, Cohort]) -> None:
    outcome = run(cohorts, private=False)
    edges = bin_edges(outcome.study.evaluation)
    for site, scored in outcome.test.items():
        counted = count_scores(scored.scores, scored.outcomes, edges)
        assert np.array_equal(outcome.state.histograms[4][site][0], counted)


def test_exact_scores_are_those_of_the_released_model(cohorts: dict[str, Cohort]) -> None:
    outcome = run(cohorts, private=True)
    scores = score(outcome.study, outcome.parameters, cohorts["city"].test)
    assert np.array_equal(outcome.test["city"].scores, scores.astype(np.float64))
    assert outcome.test["city"].patients == cohorts["city"].test.patients


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_noise(cohorts: dict[str, Cohort]) -> None:
    digests = [digest_parameters(run(cohorts, private=True, seed=seed).parameters) for seed in (7, 7, 8)]
    assert digests[0] == digests[1] != digests[2]


def test_sites_draw_different_noise(cohorts: dict[str, Cohort]) -> None:
    # Everybody holds the same patients: only noise can tell the sites' histograms apart.
    outcome = run(dict.fromkeys(SITES, cohorts["city"]), private=True)
    one, other = outcome.state.histograms[4]["city"], outcome.state.histograms[4]["coast"]
    assert not np.array_equal(one, other)


def test_a_run_that_too_few_sites_answer_fails(cohorts: dict[str, Cohort]) -> None:
    study, consortium = make_study(private=False)
    quick = {"patience_seconds": 0.1, "deadline_seconds": 0.2}
    impatient = study.model_copy(update={"training": study.training.model_copy(update=quick)})
    with pytest.raises(RunError):
        run_study(impatient, consortium, {"city": cohorts["city"]}, seed=0)


def test_a_site_without_test_patients_is_no_error(cohorts: dict[str, Cohort]) -> None:
    city = cohorts["city"]
    nobody = replace(
        city.test,
        x=city.test.x[:0],
        mask=city.test.mask[:0],
        y=city.test.y[:0],
        groups=city.test.groups[:0],
        patients=(),
    )
    outcome = run({**cohorts, "city": Cohort(train=city.train, test=nobody)}, private=False)
    assert len(outcome.test["city"].scores) == 0
    assert outcome.state.histograms[4]["city"].sum() == 0
