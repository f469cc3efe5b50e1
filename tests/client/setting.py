"""One hospital of a small consortium, with a training that counts and adds, for tests of everything around training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from fedtwin_client.gate import Gate
from fedtwin_client.hospital import Hospital
from fedtwin_client.journal import Journal, MemoryJournal
from fedtwin_client.policy import MODEL_UPDATE, SCORE_HISTOGRAM, Policy, SitePolicy
from fedtwin_client.studies import ApprovedStudy
from fedtwin_shared.models import Parameters, digest_parameters, initialise
from fedtwin_shared.round import HISTOGRAM, Arrays, RoundPlan, Task, histogram_shape, sign_round_plan
from fedtwin_shared.study import ModelName, Participant, Study
from tests.world import World, make_world

if TYPE_CHECKING:
    from fedtwin_client.cohort import Cohort, Examples
    from fedtwin_client.randomness import Randomness

RUN = "0123456789abcdef" * 2
SITE = "north"
POLICY = SitePolicy(
    maximum_epsilon=8.0,
    maximum_epsilon_year=16.0,
    maximum_epsilon_lifetime=24.0,
    maximum_delta=1e-3,
    minimum_patients=10,
    minimum_noise=0.3,
    minimum_secure_peers=0,
    allowed_models=get_args(ModelName),
    allowed_signals=("*",),
    allowed_releases=(MODEL_UPDATE, SCORE_HISTOGRAM),
    allowed_bundles=(),
    allowed_servers=(),
    plan_signatures="coordinator",
    human_approval=False,
    consent="opt-out",
    valid_until=date(2030, 12, 31),
    trusted_peers={},
)


@dataclass(kw_only=True)
class Ward:
    """What the hospital's training did: how often, with how much touched; and hooks that a test sets to break it."""

    trained: int = 0
    evaluated: int = 0
    loaded: int = 0
    before_training: Callable[[], None] = lambda: None
    before_scoring: Callable[[], None] = lambda: None
    before_loading: Callable[[], None] = lambda: None

    def load(self, study: Study, site: str) -> Cohort:
        self.before_loading()
        self.loaded += 1
        return cast("Cohort", SimpleNamespace(train=None, test=None))

    def train(
        self, study: Study, participant: Participant, parameters: Parameters, examples: Examples, randomness: Randomness
    ) -> Parameters:
        self.trained += 1
        self.before_training()
        return {name: array + np.float32(self.trained) for name, array in parameters.items()}

    def release(self, study: Study, parameters: Parameters, examples: Examples, randomness: Randomness) -> Arrays:
        self.evaluated += 1
        self.before_scoring()
        return {HISTOGRAM: np.full(histogram_shape(study), self.evaluated, dtype=np.float32)}


@dataclass(kw_only=True)
class Setting:
    """A hospital, the consortium around it and what it did."""

    world: World
    hospital: Hospital
    ward: Ward
    journal: Journal
    approved: dict[str, ApprovedStudy] = field(default_factory=dict)

    def plan(self, *, arrays: Arrays | None = None, **changes: Any) -> bytes:
        """Return a plan signed by the coordinator: training in round 1, unless changed."""
        arrays = self.model() if arrays is None else arrays
        asked: dict[str, Any] = {"study": self.world.study.digest, "run": RUN, "round": 1, "attempt": 1, **changes}
        plan = RoundPlan(**{"task": Task.TRAIN, "model": digest_parameters(arrays)} | asked)
        return sign_round_plan(plan, self.world.coordinator)

    def model(self) -> Parameters:
        """Return the study's initial parameters."""
        return initialise(self.world.study)


def make_setting(
    world: World | None = None,
    *,
    journal: Journal | None = None,
    policy: Policy = POLICY,
    attested: bool = True,
    approved: bool = True,
    ward: Ward | None = None,
) -> Setting:
    """Return a hospital that is ready for the world's study, unless told otherwise."""
    world, ward = world or make_world(), ward or Ward()
    journal = MemoryJournal() if journal is None else journal
    study = ApprovedStudy(study=world.study, roster=world.roster, attested=attested)
    studies = {world.study.digest: study} if approved else {}
    hospital = Hospital(
        gate=Gate(site=SITE, key=world.sites[SITE]),
        coordinator=world.coordinator_key,
        find_study=studies.get,
        policy=policy,
        journal=journal,
        randomness=cast("Randomness", None),
        load_cohort=ward.load,
        train=ward.train,
        release_histogram=ward.release,
    )
    return Setting(world=world, hospital=hospital, ward=ward, journal=journal, approved=studies)
