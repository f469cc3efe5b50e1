"""Attacks on what a hospital sends: can a coordinator read patients out of an update, or tell who was trained on?

Design note: the hospital's side is its own `train`, with the study's own clip, noise and steps; the attacker sees what
comes back and nothing else. Virtual patients are the only ones who may be attacked.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedtwin_client.cohort import Examples
from fedtwin_client.training import train
from fedtwin_server.rounds import release_model
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import Parameters, initialise
from fedtwin_shared.study import Study
from fedtwin_simulations.campaign.learning import Figures, draft, summarise
from fedtwin_simulations.campaign.specification import Campaign, Case, hospitals_of
from fedtwin_simulations.campaign.world import make_world, name_sites
from fedtwin_simulations.cohorts import pool_cohorts, take
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.engine.simulation import simulate
from fedtwin_simulations.engine.site_data import HeldData
from fedtwin_simulations.engine.site_tasks import Ground
from fedtwin_simulations.one_process import score_exactly
from fedtwin_simulations.scores import Scored, measure, pool
from fedtwin_simulations.seeded_randomness import SeededRandomness

Floats = npt.NDArray[np.float64]

BATCHES = 25  # attacked in one trial
DIRECTIONS = 8  # along which patients are told apart
REACH = 6.0  # standard deviations of a projection that traps cover
EXACT = 0.01  # a patient counts as recovered when every feature is this close, in typical standard deviations


def run_inversion(campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """Attack updates of `batch` patients each; return the share of patients who were recovered exactly.

    The attack is active: the coordinator sends weights of its own making (`set_traps`).
    Source: Fowl et al., ICLR 2022 (Robbing the Fed); Boenisch et al., EuroS&P 2023 (trap weights), with tanh for ReLU.
    """
    began = time.monotonic()
    hospitals = hospitals_of(campaign, case)
    sites = name_sites(hospitals)
    study = draft(campaign, case, sites[:1], {sites[0]: case.batch})
    if study.model.name != "mlp" or study.model.layers != 1 or study.features.windows != 1:
        raise ConfigurationError(
            field="study.model", expected="mlp of one layer over one window", found=study.model.name
        )
    everybody = pool_cohorts(list(make_world(hospitals, study, folder, seed=seed).values())).train
    generator = np.random.default_rng([seed, 7])
    traps = set_traps(study, generator)
    errors: list[float] = []
    recovered: list[bool] = []
    for number in range(BATCHES):
        chosen = np.zeros(len(everybody), bool)
        chosen[generator.choice(len(everybody), case.batch, replace=False)] = True
        patients = take(everybody, chosen)
        sent = train(
            study, study.participants[0], traps, patients, SeededRandomness(seed=seed, site="victim", fold=number)
        )
        distance = np.abs(patients.x.reshape(len(patients), 1, -1) - read_patients(traps, sent)[None])
        recovered += (distance.max(axis=2).min(axis=1) <= EXACT).tolist()
        errors += np.sqrt((distance**2).mean(axis=2)).min(axis=1).tolist()
    figures: Figures = {
        "recovered": float(np.mean(recovered)),
        "reconstruction_error": float(np.median(errors)),
        "seconds": time.monotonic() - began,
    }
    return {"figures": figures, "sites": {}}


def set_traps(study: Study, generator: np.random.Generator) -> Parameters:
    """Return weights under which each hidden unit moves for patients of one narrow band of one projection only.

    A unit is tanh(s (v·x - t)): its derivative vanishes but for v·x near t, so the gradients of its weights and bias
    are those of the few patients in the band, and their quotient is the patient.
    """
    parameters = {name: array.copy() for name, array in initialise(study).items()}
    hidden, inputs = parameters["hidden0.weight"].shape
    each = hidden // DIRECTIONS
    edges = np.linspace(-REACH, REACH, each)
    steepness = each / REACH  # neighbouring bands touch
    for number in range(DIRECTIONS):
        direction = generator.standard_normal((inputs,))
        direction = direction / np.linalg.norm(direction)
        own = slice(number * each, (number + 1) * each)
        parameters["hidden0.weight"][own] = steepness * direction
        parameters["hidden0.bias"][own] = -steepness * edges
    parameters["head.weight"][:] = np.resize([0.1, -0.1], hidden)  # saturated units cancel: no loss is near 0
    return parameters


def read_patients(traps: Parameters, sent: Parameters) -> Floats:
    """Return what the quotient of weight and bias changes says, one candidate[features] for each unit that moved."""
    weight = (sent["hidden0.weight"] - traps["hidden0.weight"]).astype(np.float64)
    bias = (sent["hidden0.bias"] - traps["hidden0.bias"]).astype(np.float64)
    moved = np.abs(bias) > 0
    if not moved.any():
        return np.zeros((1, weight.shape[1]))
    found: Floats = weight[moved] / bias[moved, None]
    return found


def run_membership(campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """Train a model, then tell training patients from held-out ones by their loss; return how well that works.

    Source: Yeom et al., CSF 2018 (a threshold on the loss), with one for each outcome (Song, Mittal, USENIX Security
    2021). attack_auroc 0.5 and attack_advantage 0 are chance.
    """
    began = time.monotonic()
    hospitals = hospitals_of(campaign, case)
    sites = name_sites(hospitals)
    cohorts = make_world(hospitals, draft(campaign, case, sites), folder, seed=seed)
    study = draft(campaign, case, sites, {site: len(cohort.train) for site, cohort in cohorts.items()})
    ground = Ground(study=study, consortium=make_consortium(sites, seed=0), data=HeldData(cohorts=cohorts), seed=seed)
    released = release_model(study, simulate(ground).state)

    def scored(examples: Examples) -> Scored:
        return score_exactly(study, released, examples)

    test = {site: scored(cohort.test) for site, cohort in cohorts.items()}
    inside, outside = pool([scored(cohort.train) for cohort in cohorts.values()]), pool(list(test.values()))
    figures = summarise(test) | attack_by_loss(inside, outside) | {"train_auroc": measure(inside).auroc}
    figures["seconds"] = time.monotonic() - began
    return {"figures": figures, "sites": {}}


def attack_by_loss(inside: Scored, outside: Scored) -> Figures:
    """Return how well low loss tells members from others: AUROC, and the best true minus false positive rate.

    Both are means over the two outcomes.
    """
    found = [_attack(_losses(inside, outcome), _losses(outside, outcome)) for outcome in (0, 1)]
    return {
        "attack_auroc": float(np.mean([auroc for auroc, _ in found])),
        "attack_advantage": float(np.mean([advantage for _, advantage in found])),
    }


def _attack(inside: Floats, outside: Floats) -> tuple[float, float]:
    """Return AUROC and advantage of a threshold; patients of equal loss are on the same side of it."""
    losses, member = np.concatenate([inside, outside]), np.repeat([1.0, 0.0], [len(inside), len(outside)])
    order = np.argsort(losses, kind="stable")
    gained = np.cumsum(np.where(member > 0, 1 / max(1, len(inside)), -1 / max(1, len(outside)))[order])
    last = np.append(np.diff(losses[order]) > 0, True)
    attacked = Scored(patients=("",) * len(losses), scores=-losses, outcomes=member)
    return measure(attacked).auroc, float(max(0.0, gained[last].max()))


def _losses(scored: Scored, outcome: int) -> Floats:
    """Return the loss of those with this outcome."""
    own = scored.scores[scored.outcomes == outcome]
    found: Floats = -np.log(np.maximum(own if outcome else 1 - own, 1e-12))
    return found
