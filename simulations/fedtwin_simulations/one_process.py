"""A whole study in one process, over cohorts in memory, and the exact scores that only a simulation may know."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedtwin_client.cohort import Cohort, Examples
from fedtwin_client.evaluation import score
from fedtwin_client.hospital import Train
from fedtwin_client.journal import Spend
from fedtwin_client.training import train
from fedtwin_server.release import describe_run
from fedtwin_server.rounds import RunState, release_model
from fedtwin_shared.models import Parameters
from fedtwin_shared.study import Study
from fedtwin_simulations.consortium import Consortium
from fedtwin_simulations.engine.simulation import simulate
from fedtwin_simulations.engine.site_data import HeldData
from fedtwin_simulations.engine.site_tasks import Ground
from fedtwin_simulations.scores import Scored


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
    ground = Ground(
        study=study, consortium=consortium, data=HeldData(cohorts=cohorts), seed=seed, fold=fold, train=train
    )
    simulated = simulate(ground)
    parameters = release_model(study, simulated.state)
    return Outcome(
        study=study,
        state=simulated.state,
        parameters=parameters,
        report=describe_run(study, simulated.state),
        train={site: score_exactly(study, parameters, cohort.train) for site, cohort in cohorts.items()},
        test={site: score_exactly(study, parameters, cohort.test) for site, cohort in cohorts.items()},
        spent=simulated.spent,
        seconds=time.monotonic() - began,
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
