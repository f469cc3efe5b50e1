"""The Flower app: a message in, the hospital's answer out; a content of any other form is a signed refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedtwin_client import client_app
from fedtwin_client.approval import approve_study, examine_study
from fedtwin_client.config import DIRECTORY_VARIABLE, HospitalDirectory
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import digest_parameters, initialise
from fedtwin_shared.round import Refusal, RefusalCode, RoundPlan, SiteUpdate, Task, sign_round_plan, verify_answer
from fedtwin_shared.wire import pack, unpack
from tests.client.premises import make_premises, write_study
from tests.client.setting import RUN, Setting, make_setting
from tests.world import World, make_world


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a message is made of in a process that Flower started."""
    for name, value in (("_run_id", 1), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)


def send(content: RecordDict, *, kind: str = "train") -> Message:
    return Message(content, dst_node_id=2, message_type=kind)


def ask(setting: Setting, content: RecordDict, plan: bytes, *, kind: str = "train", task: Task = Task.TRAIN) -> object:
    asked: list[Context] = []

    def find(found: Context) -> object:
        asked.append(found)
        return setting.hospital

    reply = client_app.make_client_app(find)(send(content, kind=kind), context())  # type: ignore[arg-type]  # as `find` is
    assert [found.node_id for found in asked] == [2]
    envelope, arrays = unpack(reply.content)
    world = setting.world
    return verify_answer(envelope, arrays, plan=plan, task=task, study=world.study, roster=world.roster)


def test_train_and_evaluate_are_answered_by_the_hospital_that_the_context_names() -> None:
    setting = make_setting()
    plan = setting.plan()
    assert isinstance(ask(setting, pack(plan, setting.model()), plan), SiteUpdate)
    plan = setting.plan(task=Task.EVALUATE, round=3)
    answer = ask(setting, pack(plan, setting.model()), plan, kind="evaluate", task=Task.EVALUATE)
    assert isinstance(answer, SiteUpdate)


def test_an_undeclared_field_in_a_message_is_a_refusal() -> None:
    setting = make_setting()
    plan = setting.plan()
    ride_along = pack(plan, setting.model())
    ride_along["more"] = MetricRecord({"x": 1.0})
    contents = [
        ride_along,
        RecordDict(),
        RecordDict({"envelope": ConfigRecord({"envelope": "text"}), "arrays": ArrayRecord()}),
    ]
    for content in contents:
        answer = ask(setting, content, b"")
        assert isinstance(answer, Refusal)
        assert answer.code is RefusalCode.PLAN_UNVERIFIED
    assert setting.ward.trained == 0


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def directory(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[HospitalDirectory]:
    directory = make_premises(tmp_path / "north", world)
    approve_study(directory, examine_study(directory, write_study(tmp_path, world)))
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory.root))
    client_app.installation.cache_clear()
    yield directory
    client_app.installation().journal.close()
    client_app.installation.cache_clear()


def plan_of(world: World, *, task: Task, round_: int) -> bytes:
    model = digest_parameters(initialise(world.study))
    plan = RoundPlan(study=world.study.digest, run=RUN, round=round_, attempt=1, task=task, model=model)
    return sign_round_plan(plan, world.coordinator)


@pytest.mark.parametrize(("task", "round_"), [(Task.TRAIN, 1), (Task.EVALUATE, 3)])
def test_the_installed_app_trains_on_the_hospitals_own_files(
    directory: HospitalDirectory, world: World, task: Task, round_: int
) -> None:
    plan, model = plan_of(world, task=task, round_=round_), initialise(world.study)
    message = send(pack(plan, model), kind=task.value)
    envelope, arrays = unpack(client_app.app(message, context()).content)
    answer = verify_answer(envelope, arrays, plan=plan, task=task, study=world.study, roster=world.roster)
    assert isinstance(answer, SiteUpdate)
    if task is Task.TRAIN:
        assert not np.array_equal(answer.arrays["weight"], model["weight"])
    assert unpack(client_app.app(message, context()).content)[0] == envelope


def test_an_unknown_bundle_is_a_signed_refusal(directory: HospitalDirectory, world: World) -> None:
    plan = plan_of(world, task=Task.TRAIN, round_=1)
    reply = client_app.refuse_message(send(pack(plan, initialise(world.study))))
    envelope, arrays = unpack(reply.content)
    answer = verify_answer(envelope, arrays, plan=plan, task=Task.TRAIN, study=world.study, roster=world.roster)
    assert isinstance(answer, Refusal)
    assert answer.code is RefusalCode.BUNDLE_UNKNOWN


def test_without_a_directory_in_the_environment_there_is_no_hospital(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    client_app.installation.cache_clear()
    with pytest.raises(ConfigurationError, match=DIRECTORY_VARIABLE):
        client_app.installation()
