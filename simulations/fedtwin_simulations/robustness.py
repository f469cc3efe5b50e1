"""`fedtwin simulate bench robustness`: what hostile sites do to a model, with and without each defence.

50 virtual sites train one logistic model on made-up patients; 10 or 20 % of them answer with something else than their
update. Sums under masks are exact, so a group's mean is computed here as it is seen there, without the masks.

Where each breaks is said in its row: AUROC on held-out patients more than `BROKEN` below that of training unattacked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from fedtwin_server.robust.strategy import Robustness, Rule, aggregate_robustly
from fedtwin_shared.secagg.groups import NONCE_BYTES, assign_groups, clean_share, commit_nonce
from fedtwin_simulations.results import Bench, BenchRow

Say = Callable[[str], None]
Vector = npt.NDArray[np.float32]
Patients = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # x[patients, features], outcome[patients]
Defence = Callable[[Sequence[Vector]], Vector]

SITES: Final = 50
PATIENTS: Final = 150  # at each site
FEATURES: Final = 20
ROUNDS: Final = 20
LOCAL_STEPS: Final = 5
LEARNING_RATE: Final = 0.5
CLIP: Final = 1.0  # of an honest site's update, and of a group's mean
GROUP: Final = 6
BROKEN: Final = 0.03


class Attack(StrEnum):
    """What a hostile site sends instead of its update."""

    FLIP = "flip their signs"
    SCALE = "scale by -100"
    NOISE = "send noise"
    STALE = "send their first update again"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Every site's patients, and others to test on."""

    sites: tuple[Patients, ...]
    test: Patients


def bench_robustness(say: Say) -> Bench:
    """Measure AUROC for every attack, share of hostile sites and defence."""
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it says at every call how many updates came
    world = make_world(seed=0)
    unattacked = run(world, _mean(SITES), hostile=0, attack=Attack.FLIP)
    rows = [_row("nobody hostile: mean", unattacked, None, unattacked)]
    for hostile in (SITES // 10, SITES // 5):
        for attack in Attack:
            say(f"{hostile} of {SITES} {attack}")
            undefended = run(world, _mean(SITES), hostile=hostile, attack=attack)
            for name, defence in defences(hostile).items():
                found = run(world, defence, hostile=hostile, attack=attack)
                rows.append(_row(f"{hostile} of {SITES} {attack}: {name}", found, undefended, unattacked))
    return Bench(bench="robustness", rows=tuple(rows))


def defences(hostile: int) -> dict[str, Defence]:
    """Return each defence by name: Flower's rules, which see every update, and groups under masks, which see means."""
    seen: dict[str, Defence] = {rule.value: _rule(rule, SITES, hostile) for rule in Rule if rule is not Rule.MEAN}
    clean = clean_share(SITES, hostile=hostile, size=GROUP)
    return {
        **seen,
        f"masked groups of {GROUP} ({clean:.0%} clean), clipped means, mean": by_groups(_mean),
        f"masked groups of {GROUP} ({clean:.0%} clean), clipped means, median": by_groups(_median),
    }


def by_groups(over_groups: Callable[[int], Defence]) -> Defence:
    """Return the rule over the clipped means of random groups, drawn anew by commitment in every round."""
    turn = 0

    def aggregate(updates: Sequence[Vector]) -> Vector:
        nonlocal turn
        turn += 1
        names = [f"site-{place:02d}" for place in range(len(updates))]
        chance = np.random.default_rng(turn)
        nonces, context = {name: chance.bytes(NONCE_BYTES) for name in names}, f"{turn:064d}"
        committed = {name: commit_nonce(nonce, context=context, site=name) for name, nonce in nonces.items()}
        by_name = dict(zip(names, updates, strict=True))
        groups = assign_groups(committed, nonces, context=context, size=GROUP)
        means = [clip(np.mean([by_name[name] for name in group], axis=0)) for group in groups]
        return over_groups(len(means))(means)

    return aggregate


def run(world: World, defence: Defence, *, hostile: int, attack: Attack) -> float:
    """Return the AUROC of the model after all rounds; the first `hostile` sites attack."""
    model, first = np.zeros(FEATURES + 1, dtype=np.float32), dict[int, Vector]()
    chance = np.random.default_rng(7)
    for _ in range(ROUNDS):
        updates = []
        for place, patients in enumerate(world.sites):
            update = clip(train(model, patients))
            first.setdefault(place, update)
            if place < hostile:
                update = attacked(update, attack, first=first[place], chance=chance)
            updates.append(update)
        model = model + defence(updates)
    features, outcome = world.test
    scores = np.nan_to_num(_logit(model, features), posinf=0.0, neginf=0.0)
    return float(roc_auc_score(outcome, scores))


def attacked(update: Vector, attack: Attack, *, first: Vector, chance: np.random.Generator) -> Vector:
    """Return what a hostile site sends. It has no reason to keep to the clip, except to go unnoticed."""
    match attack:
        case Attack.FLIP:
            return -update
        case Attack.SCALE:
            return (-100 * update).astype(np.float32)
        case Attack.NOISE:
            return chance.normal(scale=10.0, size=update.shape).astype(np.float32)
        case Attack.STALE:
            return first


def train(model: Vector, patients: Patients) -> Vector:
    """Return the change of a logistic model after some steps on one site's patients."""
    features, outcome = patients
    trained = model.astype(np.float64)
    for _ in range(LOCAL_STEPS):
        error = expit(_logit(trained, features)) - outcome
        gradient = np.append(features.T @ error, error.sum()) / len(outcome)
        trained = trained - LEARNING_RATE * gradient
    return (trained - model).astype(np.float32)


def clip(update: npt.NDArray[np.floating]) -> Vector:
    """Return the update at most `CLIP` long; anything that is not finite is zero."""
    finite = np.nan_to_num(update.astype(np.float64), posinf=0.0, neginf=0.0)
    norm = float(np.linalg.norm(finite))
    return (finite * min(1.0, CLIP / norm) if norm > 0 else finite).astype(np.float32)


def make_world(*, seed: int) -> World:
    """Return sites whose patients differ a little from site to site in risk and in features."""
    chance = np.random.default_rng(seed)
    weights = chance.normal(size=FEATURES) / np.sqrt(FEATURES) * 1.5

    def draw(count: int, shift: npt.NDArray[np.float64], base: float) -> Patients:
        features = chance.normal(size=(count, FEATURES)) + shift
        risk = expit(features @ weights + base)
        return features, (chance.random(count) < risk).astype(np.float64)

    sites = tuple(
        draw(PATIENTS, chance.normal(scale=0.3, size=FEATURES), chance.normal(scale=0.5) - 1.0) for _ in range(SITES)
    )
    return World(sites=sites, test=draw(5000, np.zeros(FEATURES), -1.0))


def _logit(model: npt.NDArray[np.floating], features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = features @ model[:-1].astype(np.float64) + float(model[-1])
    return found


def _mean(count: int) -> Defence:
    return _rule(Rule.MEAN, count, 0)


def _median(count: int) -> Defence:
    return _rule(Rule.MEDIAN, count, 0)


def _rule(rule: Rule, count: int, hostile: int) -> Defence:
    robustness = Robustness(rule=rule, sites=count, hostile=hostile, masked=False)
    return lambda updates: aggregate_robustly(robustness, updates)


def _row(case: str, found: float, undefended: float | None, unattacked: float) -> BenchRow:
    broken = found < unattacked - BROKEN
    return BenchRow(
        case=f"{case}: breaks" if broken else case,
        ours=found,
        baseline=undefended,
        baseline_name="" if undefended is None else "plain mean",
        unit="AUROC",
        goal="",
        holds=True,  # nothing is promised: where a defence breaks is what is to be seen
    )
