"""The order in which a hospital checks a task: of several things that are wrong, the first in the order is the reason.

Source of the order: signature of the coordinator, plan of an approved study, signed by all whom the policy asks for,
roster, model, policy, attested cohort, budget; then data are read, then the charge is written, then patients take part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.journal import MemoryJournal, Spend, TaskKey
from fedtwin_client.studies import ApprovedStudy
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import Parameters
from fedtwin_shared.roster import Roster
from fedtwin_shared.round import RefusalCode, Task, sign_round_plan, verify_round_plan
from fedtwin_shared.signing import format_public_key
from fedtwin_shared.study import Study
from tests.client.setting import POLICY, SITE, Setting, Ward, make_setting
from tests.client.test_hospital import code_in
from tests.world import make_world


class WatchedJournal(MemoryJournal):
    """Admits and charges unless it is told otherwise; remembers that it was asked to charge."""

    def __init__(self) -> None:
        super().__init__()
        self.admits = True
        self.charges = True
        self.asked = 0

    def admit(self, study: str) -> RefusalCode | None:
        return None if self.admits else RefusalCode.BUDGET_SPENT

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        self.asked += 1
        return super().charge(key, spend, limit=limit) if self.charges else RefusalCode.ATTEMPT_SPENT


class SwitchedPolicy:
    """The usual policy, or one that refuses."""

    refusing = False

    def refuses(self, study: Study) -> RefusalCode | None:
        return RefusalCode.POLICY_EXPIRED if self.refusing else POLICY.refuses(study)


@dataclass(kw_only=True)
class Case:
    """A task in the making, and everything around it that a fault may spoil."""

    journal: WatchedJournal = field(default_factory=WatchedJournal)
    policy: SwitchedPolicy = field(default_factory=SwitchedPolicy)
    ward: Ward = field(default_factory=Ward)
    signer: Ed25519PrivateKey | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    arrays: Callable[[Parameters], Parameters] = lambda arrays: arrays
    approved: Callable[[ApprovedStudy], ApprovedStudy | None] = lambda study: study


def unsigned(case: Case) -> None:
    case.signer = Ed25519PrivateKey.generate()


def unknown(case: Case) -> None:
    case.approved = lambda study: None


def unplanned(case: Case) -> None:
    case.changes["round"] = 99


def other_model(case: Case) -> None:
    case.arrays = lambda arrays: {name: array + np.float32(1) for name, array in arrays.items()}


def against_policy(case: Case) -> None:
    case.policy.refusing = True


def incomplete(case: Case) -> None:
    before = case.approved

    def change(study: ApprovedStudy) -> ApprovedStudy | None:
        kept = before(study)
        return None if kept is None else replace(kept, complete=False)

    case.approved = change


def unattested(case: Case) -> None:
    before = case.approved

    def change(study: ApprovedStudy) -> ApprovedStudy | None:
        kept = before(study)
        return None if kept is None else replace(kept, attested=False)

    case.approved = change


def other_roster(case: Case) -> None:
    before = case.approved

    def change(study: ApprovedStudy) -> ApprovedStudy | None:
        kept = before(study)
        if kept is None:
            return None
        stranger = format_public_key(Ed25519PrivateKey.generate().public_key())
        sites = [
            site.model_copy(update={"public_key": stranger} if site.name == SITE else {}) for site in kept.roster.sites
        ]
        roster = Roster(version=2, coordinator=kept.roster.coordinator, sites=tuple(sites))
        return replace(kept, roster=roster)

    case.approved = change


def unaffordable(case: Case) -> None:
    case.journal.admits = False


def unreadable(case: Case) -> None:
    def fail() -> None:
        raise ConfigurationError(expected="data", found="none")

    case.ward.before_loading = fail


def spent(case: Case) -> None:
    case.journal.charges = False


FAULTS: list[tuple[Callable[[Case], None], RefusalCode]] = [
    (unsigned, RefusalCode.PLAN_UNVERIFIED),
    (unknown, RefusalCode.STUDY_UNKNOWN),
    (incomplete, RefusalCode.STUDY_UNSIGNED),
    (other_roster, RefusalCode.STUDY_UNKNOWN),
    (unplanned, RefusalCode.PLAN_UNVERIFIED),
    (other_model, RefusalCode.MODEL_UNVERIFIED),
    (against_policy, RefusalCode.POLICY_EXPIRED),
    (unattested, RefusalCode.COHORT_NOT_ATTESTED),
    (unaffordable, RefusalCode.BUDGET_SPENT),
    (unreadable, RefusalCode.SITE_NOT_READY),
    (spent, RefusalCode.ATTEMPT_SPENT),
]
READS = 9  # from this fault on data may have been read
CHARGES = 10  # from this fault on the journal was asked


def ask(case: Case) -> RefusalCode:
    """Return the reason that the hospital signs."""
    setting: Setting = make_setting(WORLD, journal=case.journal, policy=case.policy, ward=case.ward)
    digest = WORLD.study.digest
    kept = case.approved(setting.approved[digest])
    if kept is None:
        del setting.approved[digest]
    else:
        setting.approved[digest] = kept
    plan = setting.plan(arrays=case.arrays(setting.model()), **case.changes)
    if case.signer is not None:
        plan = sign_round_plan(verify_round_plan(plan, coordinator=WORLD.coordinator_key), case.signer)
    return code_in(setting, plan)


WORLD = make_world()


@pytest.mark.parametrize(
    ("first", "later"),
    [*itertools.combinations(range(len(FAULTS)), 2), *((number, number) for number in range(len(FAULTS)))],
    ids=lambda number: FAULTS[number][0].__name__,
)
def test_of_several_faults_the_first_in_the_order_is_the_reason(first: int, later: int) -> None:
    case = Case()
    for number in {first, later}:
        FAULTS[number][0](case)
    assert ask(case) is FAULTS[first][1]
    assert case.ward.trained == case.ward.evaluated == 0
    assert case.journal.charged(WORLD.study.digest) == Spend()
    if first < READS:
        assert case.ward.loaded == 0
    if first < CHARGES:
        assert case.journal.asked == 0


def test_with_everything_wrong_each_repair_shows_the_next_reason() -> None:
    for repaired in range(len(FAULTS)):
        case = Case()
        for spoil, _ in FAULTS[repaired:]:
            spoil(case)
        assert ask(case) is FAULTS[repaired][1]


def test_without_a_fault_the_task_is_done() -> None:
    case = Case()
    setting = make_setting(WORLD, journal=case.journal, policy=case.policy, ward=case.ward)
    _, arrays, *_ = setting.hospital.answer(setting.plan(task=Task.TRAIN), setting.model())
    assert arrays
    assert case.ward.trained == case.journal.asked == 1
