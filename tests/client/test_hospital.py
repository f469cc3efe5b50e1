"""A hospital without Flower: what each plan is answered with, and what it costs."""

from __future__ import annotations

import base64
import json
import logging
import statistics
import time
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.journal import JournalError, MemoryJournal, SealedAnswer, Spend, TaskKey
from fedtwin_client.policy import Policy
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.round import (
    HISTOGRAM,
    Arrays,
    Refusal,
    RefusalCode,
    SiteUpdate,
    Task,
    sign_round_plan,
    verify_answer,
    verify_round_plan,
)
from fedtwin_shared.study import Study
from tests.client.setting import SITE, Setting, Ward, make_setting
from tests.world import make_world


class AdmitAll:
    """What a simulation passes."""

    def refuses(self, study: Study) -> RefusalCode | None:
        return None


def ask(
    setting: Setting, plan: bytes, arrays: Arrays | None = None, *, task: Task = Task.TRAIN
) -> SiteUpdate | Refusal:
    """Ask the hospital, and verify its answer as the coordinator does."""
    envelope, answered, _ = setting.hospital.answer(plan, setting.model() if arrays is None else arrays)
    world = setting.world
    return verify_answer(envelope, answered, plan=plan, task=task, study=world.study, roster=world.roster)


def refused(setting: Setting, plan: bytes, arrays: Arrays | None = None) -> RefusalCode:
    answer = ask(setting, plan, arrays)
    assert isinstance(answer, Refusal)
    return answer.code


def code_in(setting: Setting, plan: bytes) -> RefusalCode:
    """Read the code of a refusal that no coordinator would accept from this hospital."""
    envelope, arrays, _ = setting.hospital.answer(plan, setting.model())
    assert not arrays
    return RefusalCode(json.loads(base64.b64decode(json.loads(envelope)["payload"]))["code"])


def charged(setting: Setting) -> Spend:
    return setting.journal.charged(setting.world.study.digest)


def test_a_signed_plan_is_answered_with_a_verified_update() -> None:
    setting = make_setting()
    answer = ask(setting, setting.plan())
    assert isinstance(answer, SiteUpdate)
    assert answer.site == SITE
    np.testing.assert_array_equal(answer.arrays["weight"], setting.model()["weight"] + 1)
    assert charged(setting) == Spend(steps=1)


def test_an_evaluation_is_answered_with_a_histogram() -> None:
    setting = make_setting()
    answer = ask(setting, setting.plan(task=Task.EVALUATE, round=3), task=Task.EVALUATE)
    assert isinstance(answer, SiteUpdate)
    assert set(answer.arrays) == {HISTOGRAM}
    assert charged(setting) == Spend(releases=1)


def test_a_repeated_plan_gets_the_same_bytes_again_and_is_never_trained_twice() -> None:
    setting = make_setting()
    plan = setting.plan()
    first, arrays, _ = setting.hospital.answer(plan, setting.model())
    again, same, _ = setting.hospital.answer(plan, setting.model())
    assert first == again
    assert {name: array.tobytes() for name, array in arrays.items()} == {
        name: array.tobytes() for name, array in same.items()
    }
    assert setting.ward.trained == 1
    assert charged(setting) == Spend(steps=1)


def test_a_charged_attempt_that_was_not_sealed_is_spent() -> None:
    world = make_world(privacy={"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.0, "spare_rounds": 1})
    ward = Ward(before_training=_raise_once())
    setting = make_setting(world, ward=ward)
    with pytest.raises(ZeroDivisionError):
        setting.hospital.answer(setting.plan(), setting.model())
    assert charged(setting) == Spend(steps=1)
    assert refused(setting, setting.plan()) is RefusalCode.ATTEMPT_SPENT
    assert isinstance(ask(setting, setting.plan(attempt=2)), SiteUpdate)
    assert charged(setting) == Spend(steps=2)


def _raise_once() -> Any:
    left = [ZeroDivisionError("heart rate 900")]

    def fail() -> None:
        if left:
            raise left.pop()

    return fail


def test_another_plan_for_an_answered_task_is_spent_too() -> None:
    setting = make_setting()
    assert isinstance(ask(setting, setting.plan()), SiteUpdate)
    other = {name: array + np.float32(0.5) for name, array in setting.model().items()}
    assert refused(setting, setting.plan(arrays=other), other) is RefusalCode.ATTEMPT_SPENT
    assert setting.ward.trained == 1


def test_a_forged_server_is_refused() -> None:
    setting = make_setting()
    plan = verify_round_plan(setting.plan(), coordinator=setting.world.coordinator_key)
    forged = sign_round_plan(plan, Ed25519PrivateKey.generate())
    assert refused(setting, forged) is RefusalCode.PLAN_UNVERIFIED
    assert setting.ward.trained == 0


@pytest.mark.parametrize("plan", [b"", b"{}", b"\xff" * 64, b"[" * 100_000])
def test_whatever_is_no_plan_is_refused_as_unverified(plan: bytes) -> None:
    assert refused(make_setting(), plan) is RefusalCode.PLAN_UNVERIFIED


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 0},
        {"round": 4},
        {"attempt": 2},
        {"task": Task.EVALUATE, "round": 1},
        {"task": Task.EVALUATE, "round": 0},
    ],
)
def test_what_the_study_does_not_foresee_is_refused(changes: dict[str, Any]) -> None:
    setting = make_setting()
    assert refused(setting, setting.plan(**changes)) is RefusalCode.PLAN_UNVERIFIED
    assert charged(setting) == Spend()


def test_steps_beyond_the_plan_are_refused() -> None:
    setting = make_setting()
    for number in (1, 2, 3):
        assert isinstance(ask(setting, setting.plan(round=number)), SiteUpdate)
    # A coordinator that starts the same study again under a new run has nothing left to spend.
    again = setting.plan(run="f" * 32)
    assert refused(setting, again) is RefusalCode.BUDGET_SPENT
    assert setting.ward.trained == 3


def test_histograms_beyond_the_plan_are_refused() -> None:
    setting = make_setting()
    assert isinstance(ask(setting, setting.plan(task=Task.EVALUATE, round=3), task=Task.EVALUATE), SiteUpdate)
    again = setting.plan(task=Task.EVALUATE, round=3, run="f" * 32)
    assert refused(setting, again) is RefusalCode.BUDGET_SPENT
    assert setting.ward.evaluated == 1


def test_a_study_that_was_not_approved_is_unknown() -> None:
    setting = make_setting(approved=False)
    assert refused(setting, setting.plan()) is RefusalCode.STUDY_UNKNOWN
    assert refused(make_setting(setting.world), setting.plan(study="0" * 64)) is RefusalCode.STUDY_UNKNOWN


def test_an_approved_study_that_cannot_be_read_is_unknown() -> None:
    setting = make_setting()

    def damaged(digest: str) -> None:
        raise ConfigurationError(expected="a signed study", found="damage")

    setting.hospital._find_study = damaged
    assert refused(setting, setting.plan()) is RefusalCode.STUDY_UNKNOWN


def test_a_study_in_which_the_hospital_takes_no_part_is_unknown() -> None:
    world = make_world()
    others = [part.model_dump() for part in world.study.participants if part.site != SITE]
    document = world.study.model_dump(mode="json") | {"participants": others}
    world = type(world)(
        coordinator=world.coordinator, sites=world.sites, roster=world.roster, study=Study.model_validate(document)
    )
    setting = make_setting(world)
    assert code_in(setting, setting.plan()) is RefusalCode.STUDY_UNKNOWN
    assert setting.ward.trained == 0


def test_a_roster_with_another_key_for_this_hospital_is_refused() -> None:
    world = make_world()
    impostor = type(world)(
        coordinator=world.coordinator,
        sites=world.sites | {SITE: Ed25519PrivateKey.generate()},
        roster=world.roster,
        study=world.study,
    )
    setting = make_setting(impostor)
    assert code_in(setting, setting.plan()) is RefusalCode.STUDY_UNKNOWN
    assert setting.ward.trained == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    setting = make_setting()
    broken = dict(setting.model())
    broken["weight"] = broken["weight"].copy()
    broken["weight"][0] = value
    assert refused(setting, setting.plan(arrays=broken), broken) is RefusalCode.MODEL_UNVERIFIED
    assert charged(setting) == Spend()


def test_weights_of_another_digest_or_form_are_refused() -> None:
    setting = make_setting()
    plan, model = setting.plan(), dict(setting.model())
    other = model | {"bias": model["bias"] + 1}
    wide = model | {"bias": np.zeros(2, dtype=np.float32)}
    double = model | {"bias": model["bias"].astype(np.float64)}
    more = model | {"extra": model["bias"]}
    for arrays in (other, wide, double, more, {}):
        assert refused(setting, plan, arrays) is RefusalCode.MODEL_UNVERIFIED
    assert setting.ward.trained == 0


NONE = {
    "privacy": {"mode": "none", "epsilon": 1.0, "delta": 1e-5, "noise_multiplier": 0.0},
    "evaluation": {"noise_multiplier": 0.0},
}
COLUMN = {"split": {"rule": "column"}}
DEAR = {"privacy": {"epsilon": 20.0, "delta": 1e-5, "noise_multiplier": 4.0}}
LOOSE = {"privacy": {"epsilon": 8.0, "delta": 1e-2, "noise_multiplier": 4.0}}


@pytest.mark.parametrize("changes", [NONE, COLUMN, DEAR, LOOSE])
def test_the_policy_refuses_what_a_signature_cannot_excuse(changes: dict[str, Any]) -> None:
    world = make_world(**changes)
    setting = make_setting(world)
    assert refused(setting, setting.plan()) is RefusalCode.POLICY
    assert charged(setting) == Spend()
    admitting: Policy = AdmitAll()
    assert isinstance(ask(make_setting(world, policy=admitting), setting.plan()), SiteUpdate)


def test_a_cohort_that_was_not_attested_is_refused() -> None:
    setting = make_setting(attested=False)
    assert refused(setting, setting.plan()) is RefusalCode.COHORT_NOT_ATTESTED


def test_data_that_cannot_be_read_are_refused_before_any_charge() -> None:
    failures: list[Exception] = [PermissionError("patients.csv"), ConfigurationError(expected="data", found="none")]

    def fail() -> None:
        if failures:
            raise failures.pop()

    setting = make_setting(ward=Ward(before_loading=fail))
    for _ in range(2):
        assert refused(setting, setting.plan()) is RefusalCode.SITE_NOT_READY
        assert charged(setting) == Spend()
    assert isinstance(ask(setting, setting.plan()), SiteUpdate)


class FullDisk(MemoryJournal):
    """Fails where it is told to."""

    def __init__(self, failing: str) -> None:
        super().__init__()
        self.failing = failing

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        if self.failing == "charge":
            raise JournalError(expected="a disk that writes", found="No space left on device")
        return super().charge(key, spend, limit=limit)

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        if self.failing == "seal":
            raise JournalError(expected="a disk that writes", found="No space left on device")
        super().seal(key, answer)


def test_a_charge_that_is_not_durable_means_that_nothing_is_trained() -> None:
    setting = make_setting(journal=FullDisk("charge"))
    assert refused(setting, setting.plan()) is RefusalCode.SITE_NOT_READY
    assert setting.ward.trained == 0


def test_an_answer_that_is_not_sealed_does_not_leave_and_stays_charged() -> None:
    setting = make_setting(journal=FullDisk("seal"))
    assert refused(setting, setting.plan()) is RefusalCode.SITE_NOT_READY
    assert charged(setting) == Spend(steps=1)
    assert refused(setting, setting.plan()) is RefusalCode.ATTEMPT_SPENT
    assert setting.ward.trained == 1


def test_an_update_that_is_not_finite_does_not_leave() -> None:
    setting = make_setting()
    huge = {name: np.full_like(array, 3e38) for name, array in setting.model().items()}
    setting.hospital._train = lambda study, participant, parameters, examples, randomness: {
        name: array * np.float32(10) for name, array in parameters.items()
    }
    with np.errstate(over="ignore"):
        assert refused(setting, setting.plan(arrays=huge), huge) is RefusalCode.MODEL_UNVERIFIED


def test_the_cohort_is_read_once_and_forgotten_when_the_study_is_withdrawn() -> None:
    setting = make_setting()
    digest = setting.world.study.digest
    setting.hospital.prepare(digest)
    ask(setting, setting.plan())
    ask(setting, setting.plan(round=2))
    assert setting.ward.loaded == 1
    approved = setting.approved.pop(digest)
    assert refused(setting, setting.plan(round=3)) is RefusalCode.STUDY_UNKNOWN
    setting.approved[digest] = approved
    ask(setting, setting.plan(round=3))
    assert setting.ward.loaded == 2


def test_the_log_holds_no_text_of_a_foreign_error(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise PermissionError("patient 4711")

    setting = make_setting(ward=Ward(before_loading=fail))
    with caplog.at_level(logging.DEBUG):
        refused(setting, setting.plan())
    assert "PermissionError" in caplog.text
    assert "4711" not in caplog.text


def test_one_task_costs_at_most_two_milliseconds_beside_training() -> None:
    setting = make_setting(
        make_world(
            training={"rounds": 200, "learning_rate": 1.0, "minimum_sites": 2},
            privacy={"epsilon": 20.0, "delta": 1e-5, "noise_multiplier": 20.0},
        ),
        policy=AdmitAll(),
    )
    model = setting.model()
    plans = [setting.plan(arrays=model, round=number) for number in range(1, 201)]
    seconds = []
    for plan in plans:
        started = time.perf_counter()
        setting.hospital.answer(plan, model)
        seconds.append(time.perf_counter() - started)
    assert setting.ward.trained == 200
    assert statistics.median(seconds) <= 0.002
