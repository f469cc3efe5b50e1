"""The methods that are compared, each as a study of its own with journals of its own: simulations only.

Design note: a real consortium can never print such a table: every line of it would be another release about the same
patients. Here every method runs the very protocol of a real study, on the same training and test patients:
  - pooled: one site holds everybody's patients, no privacy
  - local: each site alone with its own patients, no privacy; each scores its own test patients
  - federated: all sites, no privacy
  - private: all sites, each with its own whole noise, calibrated to ε over the planned steps and histograms; or, where
    the entry says so, with noise that only all sites' sum has whole
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedtwin_client.cohort import Cohort
from fedtwin_shared.histogram import Counts
from fedtwin_shared.study import Study
from fedtwin_simulations.cohorts import Gathered, Parts, pool_cohorts
from fedtwin_simulations.consortium import Consortium
from fedtwin_simulations.one_process import Outcome, run_study, score_exactly
from fedtwin_simulations.scores import Scored
from fedtwin_simulations.specification import POOLED, Experiment, MethodEntry, draft_study


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one method gave on one fold.

    train, test: exact scores by site. histograms: what sites released about the final model, f64[classes, bins] of
    everybody, by site; for pooled training under the one name `POOLED`.
    """

    entry: MethodEntry
    study: Study
    train: Mapping[str, Scored]
    test: Mapping[str, Scored]
    histograms: Mapping[str, Counts]
    seconds: float


def run_method(
    experiment: Experiment,
    entry: MethodEntry,
    gathered: Gathered,
    parts: Parts,
    consortium: Consortium,
    *,
    seed: int,
    fold: int = 0,
) -> Trial:
    """Run one method on one fold. Raises what `draft_study` and `run_study` raise.

    - sites, patients, features and folds are the same for every method
    """
    if entry.method == "pooled":
        return _run_pooled(experiment, entry, gathered, parts, consortium, seed=seed, fold=fold)
    if entry.method == "local":
        return _run_local(experiment, entry, gathered, parts, consortium, seed=seed, fold=fold)
    study = draft_study(experiment, entry, consortium.roster)
    cohorts = {site: gathered.cohort(study, site, parts) for site in gathered.sites}
    outcome = run_study(study, consortium, cohorts, seed=seed, fold=fold)
    return _trial(entry, [outcome])


def _run_pooled(
    experiment: Experiment,
    entry: MethodEntry,
    gathered: Gathered,
    parts: Parts,
    consortium: Consortium,
    *,
    seed: int,
    fold: int,
) -> Trial:
    study = draft_study(experiment, entry, consortium.roster, pooled=True, minimum_sites=1)
    cohorts = {site: gathered.cohort(study, site, parts) for site in gathered.sites}
    outcome = run_study(study, consortium, {POOLED: pool_cohorts(list(cohorts.values()))}, seed=seed, fold=fold)
    by_site = _score_sites(outcome, cohorts)
    return Trial(
        entry=entry,
        study=study,
        train={site: train for site, (train, _) in by_site.items()},
        test={site: test for site, (_, test) in by_site.items()},
        histograms=final_histograms(outcome),
        seconds=outcome.seconds,
    )


def _run_local(
    experiment: Experiment,
    entry: MethodEntry,
    gathered: Gathered,
    parts: Parts,
    consortium: Consortium,
    *,
    seed: int,
    fold: int,
) -> Trial:
    study = draft_study(experiment, entry, consortium.roster, minimum_sites=1)
    outcomes = [
        run_study(study, consortium, {site: gathered.cohort(study, site, parts)}, seed=seed, fold=fold)
        for site in gathered.sites
    ]
    return _trial(entry, outcomes)


def _score_sites(outcome: Outcome, cohorts: Mapping[str, Cohort]) -> dict[str, tuple[Scored, Scored]]:
    study, parameters = outcome.study, outcome.parameters
    return {
        site: (score_exactly(study, parameters, cohort.train), score_exactly(study, parameters, cohort.test))
        for site, cohort in cohorts.items()
    }


def _trial(entry: MethodEntry, outcomes: list[Outcome]) -> Trial:
    return Trial(
        entry=entry,
        study=outcomes[0].study,
        train={site: scored for outcome in outcomes for site, scored in outcome.train.items()},
        test={site: scored for outcome in outcomes for site, scored in outcome.test.items()},
        histograms={site: counts for one in outcomes for site, counts in final_histograms(one).items()},
        seconds=sum(outcome.seconds for outcome in outcomes),
    )


def final_histograms(outcome: Outcome) -> dict[str, Counts]:
    """Return what each site released about the final model, of everybody, with its noise."""
    released = outcome.state.histograms[outcome.study.training.rounds]
    return {site: counts[0] for site, counts in released.items()}
