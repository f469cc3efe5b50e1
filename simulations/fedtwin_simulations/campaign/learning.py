"""One trial of learning: a study over virtual hospitals by one method, and how well its models do at each hospital."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedtwin_client.cohort import Cohort, Examples
from fedtwin_server.rounds import release_model
from fedtwin_shared.documents import check_document
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.round import RoundPlan, Task
from fedtwin_shared.signal import CATEGORIES
from fedtwin_shared.study import Study
from fedtwin_simulations.campaign.methods import Ditto, LocalNormalisation, Ordinary, Scaffold, SharedNoise, SiteMethod
from fedtwin_simulations.campaign.specification import Campaign, Case, Measure, hospitals_of
from fedtwin_simulations.campaign.world import make_world, name_sites
from fedtwin_simulations.cohorts import pool_cohorts
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.engine.simulation import Simulated, World, simulate
from fedtwin_simulations.engine.site_data import HeldData
from fedtwin_simulations.engine.site_tasks import Ground
from fedtwin_simulations.scores import Scored, measure, pool
from fedtwin_simulations.specification import POOLED, merge, set_price

TRAINING_SHARE = 0.75
HOUR = 3600.0

Figures = dict[Measure, float]


def run_learning(campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """Return the trial's figures, and each site's AUROC under `sites`.

    Raises what making hospitals, drafting the study and running it raise.

    - the same campaign, case and seed give the same figures
    """
    began = time.monotonic()
    sites = name_sites(hospitals_of(campaign, case))
    cohorts = make_world(hospitals_of(campaign, case), draft(campaign, case, sites), folder, seed=seed)
    if case.method == "alone":
        runs = [_run(campaign, case, {site: cohort}, seed=seed) for site, cohort in cohorts.items()]
    elif case.method == "pooled":
        study, method, run = _run(campaign, case, {POOLED: pool_cohorts(list(cohorts.values()))}, seed=seed)
        runs = [(study, method, run)]
    else:
        runs = [_run(campaign, case, cohorts, seed=seed)]
    by_site = {site: runs[min(place, len(runs) - 1)] for place, site in enumerate(cohorts)}
    test = {site: _score(by_site[site], site, cohort.test) for site, cohort in cohorts.items()}
    train = {site: _score(by_site[site], site, cohort.train) for site, cohort in cohorts.items()}
    figures = summarise(test) | {"train_auroc": measure(pool(list(train.values()))).auroc}
    figures |= measure_groups(runs[0][0], test, {site: cohort.test for site, cohort in cohorts.items()})
    figures |= _rounds([(len(study.participants), run) for study, _, run in runs])
    figures["seconds"] = time.monotonic() - began
    return {"figures": figures, "sites": {site: _number(measure(one).auroc) for site, one in test.items()}}


def draft(campaign: Campaign, case: Case, sites: tuple[str, ...], patients: Mapping[str, int] | None = None) -> Study:
    """Return the case's study over `sites`. Raises `ConfigurationError` naming the field that is not valid.

    - the ε of the planned steps and histograms is at most the case's
    """
    nominal = round(TRAINING_SHARE * hospitals_of(campaign, case).patients)
    document = merge(campaign.study, case.changes)
    counts = patients or dict.fromkeys(sites, nominal)
    roster = make_consortium(sites, seed=0).roster
    document |= {
        "roster": roster.digest,
        "participants": [{"site": site, "patients": counts[site], "weight": float(counts[site])} for site in sites],
    }
    training = document.setdefault("training", {})
    if case.method in ("fedprox", "fedadam", "fedyogi"):
        training["algorithm"] = case.method
    training["minimum_sites"] = 1
    set_price(document, epsilon=case.epsilon, delta=campaign.delta)
    return check_document(document, Study, file=f"campaign {campaign.name}, case {case.name}: study")


def _run(
    campaign: Campaign, case: Case, cohorts: Mapping[str, Cohort], *, seed: int
) -> tuple[Study, SiteMethod, Simulated]:
    """Run the case's study over these sites. Nominal numbers are the true ones: nobody here exists."""
    sites = tuple(cohorts)
    counts = {site: max(1, len(cohort.train)) for site, cohort in cohorts.items()}
    study, method = draft(campaign, case, sites, counts), _method(case)
    ground = Ground(
        study=study,
        consortium=make_consortium(sites, seed=0),
        data=HeldData(cohorts=cohorts),
        seed=seed,
        train=method,
    )
    return study, method, simulate(ground, world=_world(case, seed))


def _method(case: Case) -> SiteMethod:
    if case.noise == "distributed":
        return SharedNoise()
    kinds: dict[str, type[Ordinary]] = {"scaffold": Scaffold, "ditto": Ditto, "fedbn": LocalNormalisation}
    return kinds.get(case.method, Ordinary)()


def _world(case: Case, seed: int) -> World:
    """Sites that are away or late in a round of training, each round anew."""

    def happens(what: str, share: float, site: str, plan: RoundPlan) -> bool:
        drawn = hashlib.sha256(f"{what} {seed} {site} {plan.round}".encode()).digest()[:8]
        return plan.task is Task.TRAIN and int.from_bytes(drawn, "big") < share * 2**64

    return World(
        absent=(lambda site, plan: happens("absent", case.absent, site, plan)) if case.absent else None,
        slow=(lambda site, plan: case.slow_hours * HOUR * happens("slow", case.slow, site, plan))
        if case.slow
        else None,
    )


def _score(run: tuple[Study, SiteMethod, Simulated], site: str, examples: Examples) -> Scored:
    study, method, simulated = run
    released: Parameters = release_model(study, simulated.state) if simulated.state.rounds_done else initialise(study)
    scores = method.score(study, site, released, examples) if len(examples) else np.empty(0)
    return Scored(patients=examples.patients, scores=scores.astype(np.float64), outcomes=examples.y.astype(np.float64))


def summarise(test: Mapping[str, Scored]) -> Figures:
    """Return figures of everybody's scores, and over sites where they are defined."""
    everybody = measure(pool(list(test.values())))
    own = [value for value in (measure(one).auroc for one in test.values()) if not math.isnan(value)]
    return {
        "auroc": everybody.auroc,
        "auprc": everybody.auprc,
        "brier": everybody.brier,
        "calibration_error": everybody.calibration_error,
        "site_auroc": float(np.mean(own)) if own else math.nan,
        "worst_site_auroc": min(own, default=math.nan),
    }


def measure_groups(study: Study, test: Mapping[str, Scored], examples: Mapping[str, Examples]) -> Figures:
    """Return the AUROC of the worst subgroup and the widest gap between two levels of one category."""
    if not study.evaluation.subgroups:
        return {}
    everybody = pool(list(test.values()))
    groups = np.concatenate([examples[site].groups for site in test])
    worst, gap, column = math.inf, 0.0, 1
    for key in study.evaluation.subgroups:
        found = []
        for _ in CATEGORIES[key].levels:
            chosen = groups[:, column]
            found.append(measure(_choose(everybody, chosen)).auroc if chosen.any() else math.nan)
            column += 1
        defined = [value for value in found if not math.isnan(value)]
        if defined:
            worst, gap = min(worst, *defined), max(gap, max(defined) - min(defined))
    return {"worst_group_auroc": worst, "group_gap": gap}


def _choose(scored: Scored, rows: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Scored:
    kept = np.flatnonzero(rows)
    return Scored(
        patients=tuple(scored.patients[row] for row in kept), scores=scored.scores[kept], outcomes=scored.outcomes[kept]
    )


def _rounds(runs: list[tuple[int, Simulated]]) -> Figures:
    """Return the share of sites whose update counted, and the simulated time, of runs over so many sites."""
    shares = [len(one.sites) / sites for sites, run in runs for one in run.state.history if one.task is Task.TRAIN]
    return {"answers": float(np.mean(shares)), "waited_hours": max(run.waited_seconds for _, run in runs) / HOUR}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
