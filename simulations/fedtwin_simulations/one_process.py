"""A whole study in one process: the coordinator's own ServerApp, the hospitals' own ClientApp, no socket, no disk.

Design note: the same ServerApp, ClientApp and `Hospital` as in a real deployment, with everything that is passed in
replaced by its in-memory kind: journal, run store, keys, cohort. Signatures are made and checked, budgets charged.
What is added after the run, the exact scores, exists in simulations only.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedtwin_client.client_app import make_client_app
from fedtwin_client.cohort import Cohort, Examples
from fedtwin_client.evaluation import release_histogram, score
from fedtwin_client.gate import Gate
from fedtwin_client.hospital import Hospital, Train
from fedtwin_client.journal import Journal, MemoryJournal, Spend
from fedtwin_client.studies import ApprovedStudy
from fedtwin_client.training import train
from fedtwin_server.release import describe_run
from fedtwin_server.rounds import RunState, release_model, start_run
from fedtwin_server.run_store import MemoryRunStore
from fedtwin_server.server_app import Run, make_server_app
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.models import Parameters
from fedtwin_shared.signing import format_public_key
from fedtwin_shared.study import Study
from fedtwin_simulations.consortium import Consortium
from fedtwin_simulations.local_grid import run_local
from fedtwin_simulations.scores import Scored
from fedtwin_simulations.seeded_randomness import SeededRandomness
from fedtwin_simulations.simulation_policy import SimulationPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulated study left behind.

    state: the coordinator's last state, with every histogram that a site released.
    train, test: exact scores of the released model by site; simulation only.
    spent: what each site's own journal charged.
    """

    study: Study
    state: RunState
    parameters: Parameters
    report: Mapping[str, object]
    train: Mapping[str, Scored]
    test: Mapping[str, Scored]
    spent: Mapping[str, Spend]
    seconds: float


def run_study(
    study: Study,
    consortium: Consortium,
    cohorts: Mapping[str, Cohort],
    *,
    seed: int,
    fold: int = 0,
    train: Train = train,
) -> Outcome:
    """Run the study over the hospitals of `cohorts` (some or all of its participants) and return its outcome.

    train: the hospitals' own, unless something is to be measured around it.

    Raises `RunError` when fewer than training.minimum_sites sites answer a round.

    - without privacy, the same study and cohorts give the same bits as real processes do
    - with privacy, noise follows from `seed` and `fold`, so that the same two give the same bits again
    """
    began = time.monotonic()
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it says at every round how many replies came
    signed = verify_study(
        sign_study(study, consortium.roster, consortium.coordinator),
        coordinator=format_public_key(consortium.coordinator.public_key()),
    )
    journals = {site: MemoryJournal() for site in cohorts}
    hospitals = {
        site: make_hospital(signed.study, consortium, site, cohort, journals[site], seed=seed, fold=fold, train=train)
        for site, cohort in cohorts.items()
    }
    store = MemoryRunStore(start_run(study, run=hashlib.sha256(f"run {seed}".encode()).hexdigest()[:32]))
    grid = run_local(
        make_server_app(lambda context: Run(signed=signed, key=consortium.coordinator, store=store)),
        make_client_app(lambda context: hospitals[str(context.node_config["site"])]),
        [{"site": site} for site in hospitals],
    )
    if grid.failures:  # a simulated hospital has no other reader of its errors
        raise grid.failures[0]
    parameters = release_model(study, store.state)
    return Outcome(
        study=study,
        state=store.state,
        parameters=parameters,
        report=describe_run(study, store.state),
        train={site: score_exactly(study, parameters, cohort.train) for site, cohort in cohorts.items()},
        test={site: score_exactly(study, parameters, cohort.test) for site, cohort in cohorts.items()},
        spent={site: journal.charged(study.digest) for site, journal in journals.items()},
        seconds=time.monotonic() - began,
    )


def make_hospital(
    study: Study,
    consortium: Consortium,
    site: str,
    cohort: Cohort,
    journal: Journal,
    *,
    seed: int,
    fold: int = 0,
    train: Train = train,
) -> Hospital:
    """Return a simulated hospital that has approved the study and holds the cohort."""
    approved = {study.digest: ApprovedStudy(study=study, roster=consortium.roster, attested=True)}
    return Hospital(
        gate=Gate(site=site, key=consortium.sites[site]),
        coordinator=format_public_key(consortium.coordinator.public_key()),
        find_study=approved.get,
        policy=SimulationPolicy(),
        journal=journal,
        randomness=SeededRandomness(seed=seed, site=site, fold=fold),
        load_cohort=lambda study, site: cohort,
        train=train,
        release_histogram=release_histogram,
    )


def score_exactly(study: Study, parameters: Parameters, examples: Examples) -> Scored:
    """Return the exact scores of some patients: simulation only."""
    if not len(examples):
        return Scored(patients=(), scores=examples.y.astype("float64"), outcomes=examples.y.astype("float64"))
    return Scored(
        patients=examples.patients,
        scores=score(study, parameters, examples).astype("float64"),
        outcomes=examples.y.astype("float64"),
    )
