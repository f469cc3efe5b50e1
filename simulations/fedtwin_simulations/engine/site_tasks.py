"""The hospitals of a simulation, each made when its task comes and let go of after it; some of them trained together.

Design note: a hospital's answer is a function of the plan, its patients and the seed; nothing else is carried from one
round to the next but its journal. So a run that was interrupted goes on with the same bits, and it does not matter
which process plays which hospital.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedtwin_client.client_app import make_client_app
from fedtwin_client.cohort import Cohort, Examples
from fedtwin_client.evaluation import release_histogram
from fedtwin_client.gate import Gate
from fedtwin_client.hospital import Hospital, Train
from fedtwin_client.journal import Journal, MemoryJournal, Spend
from fedtwin_client.networks import build_network
from fedtwin_client.randomness import Randomness
from fedtwin_client.studies import ApprovedStudy
from fedtwin_client.training import train
from fedtwin_client.training.engine import make_patient_gradients
from fedtwin_shared.models import Parameters, initialise, input_features, parameter_shapes
from fedtwin_shared.round import RoundPlan, Task
from fedtwin_shared.signing import format_public_key
from fedtwin_shared.study import Participant, Study
from fedtwin_simulations.consortium import Consortium
from fedtwin_simulations.engine.plans import read_plan
from fedtwin_simulations.engine.site_data import SiteData
from fedtwin_simulations.engine.together import Member, train_together
from fedtwin_simulations.local_grid import NodeTask, answer_task, read_envelope
from fedtwin_simulations.seeded_randomness import SeededRandomness
from fedtwin_simulations.simulation_policy import SimulationPolicy

NUMBERS_TOGETHER = 1 << 22  # float32 that sites trained together may hold: beyond the cache, alone is as fast
FEWEST_TOGETHER = 4  # below it, batching saves less than its products cost
MOST_TOGETHER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What it takes to play every hospital of one study; it can be sent to another process.

    together: the most sites that are trained as one; 1: each alone, as at a hospital. A performance knob: results agree
    within 1e-5.
    train: the hospitals' own, unless something is measured or tried; then every site is alone.
    """

    study: Study
    consortium: Consortium
    data: SiteData
    seed: int
    fold: int = 0
    together: int = 1
    train: Train = train

    def __post_init__(self) -> None:
        if self.together > 1 and self.train is not train:
            raise ValueError("expected the hospitals' own training where sites are trained together, found another")


class SiteTasks:
    """Plays some or all hospitals in this process; implements `local_grid.RunTasks`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._coordinator = format_public_key(ground.consortium.coordinator.public_key())
        self._approved = {
            ground.study.digest: ApprovedStudy(study=ground.study, roster=ground.consortium.roster, attested=True)
        }
        self._journals: dict[str, Journal] = {}
        self._app = make_client_app(lambda context: self._open(str(context.node_config["site"])))
        self._asked: dict[str, int] = {}  # streams that every site had asked for before this plan
        self._cohorts: dict[str, Cohort] = {}  # of the sites that have their turn
        self._turn: tuple[str, ...] = ()
        self._trained: dict[str, Parameters] = {}

    def __call__(self, tasks: Sequence[NodeTask]) -> list[bytes | Exception]:
        """Return the hospitals' replies; all tasks carry one plan.

        - the same tasks give the same bytes, whatever ran before
        """
        if not tasks:
            return []
        plan, replies = read_plan(read_envelope(tasks[0].message)), list[bytes | Exception]()
        self._asked = count_asked(self._ground.study, plan)
        size = self._ground.together if plan.task is Task.TRAIN else 1
        for start in range(0, len(tasks), size):
            group = tasks[start : start + size]
            self._turn = tuple(task.config["site"] for task in group)
            replies += [answer_task(self._app, task) for task in group]
            self._cohorts.clear()
            self._trained.clear()
        return replies

    def spent(self) -> dict[str, Spend]:
        """Return what every site has charged in this process."""
        (study,) = self._approved
        nothing = MemoryJournal()
        return {site: self._journals.get(site, nothing).charged(study) for site in self._ground.data.sites}

    def _open(self, site: str) -> Hospital:
        ground = self._ground
        return Hospital(
            gate=Gate(site=site, key=ground.consortium.sites[site]),
            coordinator=self._coordinator,
            find_study=self._approved.get,
            policy=SimulationPolicy(),
            journal=self._journals.setdefault(site, MemoryJournal()),
            randomness=self._randomness(site),
            load_cohort=self._read,
            train=ground.train if len(self._turn) == 1 else self._train_in_turn,
            release_histogram=release_histogram,
        )

    def _randomness(self, site: str) -> SeededRandomness:
        return SeededRandomness(seed=self._ground.seed, site=site, fold=self._ground.fold, asked=self._asked)

    def _read(self, study: Study, site: str) -> Cohort:
        if site not in self._cohorts:
            self._cohorts[site] = self._ground.data.read(study, site)
        return self._cohorts[site]

    def _train_in_turn(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        """The first site of a turn trains all of them: every hospital of a turn was asked and none can refuse."""
        if participant.site not in self._trained:
            members = [self._member(study, site) for site in self._turn]
            self._trained = dict(zip(self._turn, train_together(study, members, parameters), strict=True))
        return self._trained.pop(participant.site)

    def _member(self, study: Study, site: str) -> Member:
        participant = study.participant(site)
        assert participant is not None
        return Member(
            participant=participant,
            examples=self._read(study, site).train,
            stream=self._randomness(site).stream("train"),
        )


def count_asked(study: Study, plan: RoundPlan) -> dict[str, int]:
    """Return how many streams a site has asked for each task before this plan, if it was never away."""
    evaluated = (*study.evaluation.rounds, study.training.rounds)
    return {
        "train": max(0, plan.round - 1),
        "evaluate": evaluated.index(plan.round) if plan.round in evaluated else 0,
    }


def choose_together(study: Study, patients: int) -> int:
    """Return how many sites of so many patients are best trained as one; 1 where alone is as fast.

    1 also where this machine's private engine draws slots that a batch would not draw.
    """
    model, features = study.model, study.features
    shapes = parameter_shapes(study)
    outputs = sum(shape[0] for shape in shapes.values() if len(shape) == 2)
    recurrent = model.name not in ("logistic", "mlp")
    steps = features.windows * features.steps
    held = steps * (input_features(study) + outputs) if recurrent else steps * input_features(study) + outputs
    numbers = patients * (held + sum(math.prod(shape) for shape in shapes.values()))
    together = min(MOST_TOGETHER, NUMBERS_TOGETHER // max(1, numbers))
    if together < FEWEST_TOGETHER:
        return 1
    network = build_network(study, initialise(study))
    if study.privacy.mode != "none" and not make_patient_gradients(network, 1.0).any_slot:
        return 1
    return together
