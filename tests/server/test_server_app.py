"""The app against Flower's Grid interface: patience, deadline, late nodes, hostile answers, kill and resume."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from fedtwin_server.errors import RunError
from fedtwin_server.rounds import RunState, retry_round
from fedtwin_server.run_store import MemoryRunStore
from fedtwin_server.server_app import conduct, make_server_app
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.wire import pack, unpack
from tests.server.consortium import (
    RUN,
    Behaviour,
    Node,
    SilentGrid,
    StillClock,
    honest,
    honest_nodes,
    make_run,
    refusing,
    sign_update,
    start,
)
from tests.world import SITES, World, make_world

TRAINING = {
    "rounds": 3,
    "learning_rate": 1.0,
    "minimum_sites": 2,
    "patience_seconds": 30.0,
    "deadline_seconds": 300.0,
}
ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "fedavg"},
    {"algorithm": "fedavg", "server_learning_rate": 0.5, "average_from_round": 2},
    {"algorithm": "fedprox", "proximal": 0.1},
    {"algorithm": "fedadam", "server_learning_rate": 0.1},
    {"algorithm": "fedyogi", "server_learning_rate": 0.1, "average_from_round": 1},
]


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class FragileStore(MemoryRunStore):
    """A memory store whose process dies around the n-th save: before or after it took effect."""

    def __init__(self, state: RunState, *, at: int, saved: bool) -> None:
        super().__init__(state)
        self.at, self.saved, self.saves = at, saved, 0

    def save(self, state: RunState) -> None:
        self.saves += 1
        if self.saves == self.at and not self.saved:
            raise Killed
        super().save(state)
        if self.saves == self.at:
            raise Killed


def run_once(world: World, nodes: dict[int, Node], store: MemoryRunStore | None = None) -> tuple[RunState, StillClock]:
    clock = StillClock()
    return conduct(make_run(world, clock, store), SilentGrid(nodes, clock)), clock


def test_a_run_ends_with_a_release_and_one_line_for_each_task() -> None:
    world = make_world(evaluation={"noise_multiplier": 6.0, "rounds": [0]})
    store = MemoryRunStore(start(world))
    state, clock = run_once(world, honest_nodes(world), store)
    assert clock.now == 0.0  # replies were there at once: nobody slept
    assert store.released is not None
    parameters, report = store.released
    assert digest_parameters(parameters) == report["model"]["digest"] == digest_parameters(state.model.parameters)
    assert [(line["task"], line["round"]) for line in store.progress] == [
        ("evaluate", 0),
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("evaluate", 3),
    ]
    assert set(store.progress[0]["metrics"]["sites"]) == set(SITES)
    assert report["answered_rounds"]["north"] == {"train": [1, 2, 3], "evaluate": [0, 3]}
    assert report["evaluations"][-1]["released_model"] is True
    assert 0 < report["privacy"]["spent_epsilon"] <= report["privacy"]["plan_epsilon"] <= 8.0
    assert "nominal ε" in report["privacy"]["statement"]


def test_the_app_opens_the_run_of_its_context() -> None:
    world, clock = make_world(), StillClock()
    run, seen = make_run(world, clock), list[str]()

    def open_run(context: Context) -> Any:
        seen.append(str(context.run_config["run"]))
        return run

    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"run": RUN}, series_id=1)
    make_server_app(open_run)(SilentGrid(honest_nodes(world), clock), context)
    assert seen == [RUN]
    assert isinstance(run.store, MemoryRunStore)
    assert run.store.released is not None


def test_after_patience_a_round_goes_on_with_the_minimum() -> None:
    world = make_world(training=TRAINING | {"rounds": 1})
    nodes = honest_nodes(world)
    nodes[3] = Node(behaviour=lambda message: None)
    store = MemoryRunStore(start(world))
    _, clock = run_once(world, nodes, store)
    assert 60 <= clock.now < 63  # two tasks: training, and evaluation of the released model
    assert store.progress[0]["sites"] == ["north", "south", "west"]


def test_the_deadline_ends_a_round_below_the_minimum() -> None:
    world = make_world(training=TRAINING)
    nodes = {1: Node(behaviour=honest(world, "north")), 2: Node(behaviour=lambda message: None)}
    store = MemoryRunStore(start(world))
    with pytest.raises(RunError, match="train 1: expected answers of 2 sites, found 1 within 300 s"):
        run_once(world, nodes, store)
    assert store.state.failed is not None
    assert store.state.rounds_done == 0
    assert store.released is None
    assert store.progress[-1]["counts"] is False
    assert 300 <= store.progress[-1]["seconds"] < 302


def test_nobody_online_ends_at_the_deadline() -> None:
    with pytest.raises(RunError, match="found 0 within 300 s"):
        run_once(make_world(training=TRAINING), {})


def test_when_everybody_has_said_no_the_run_ends_at_once() -> None:
    world = make_world(training=TRAINING)
    nodes = {
        number: Node(behaviour=refusing(world, site, RefusalCode.POLICY)) for number, site in enumerate(SITES, start=1)
    }
    store = MemoryRunStore(start(world))
    with pytest.raises(RunError):
        run_once(world, nodes, store)
    assert store.progress[-1]["seconds"] == 0.0
    assert store.progress[-1]["refusals"] == dict.fromkeys(sorted(SITES), "policy")


def test_a_round_waits_for_the_minimum_to_come_online() -> None:
    world = make_world(training=TRAINING)
    nodes = honest_nodes(world)
    for number, node in nodes.items():
        node.online_from = 10.0 * number
    store = MemoryRunStore(start(world))
    _, clock = run_once(world, nodes, store)
    assert store.progress[0]["sites"] == ["north", "south"]
    assert clock.now == pytest.approx(20.0, abs=3.0)


def test_a_node_that_joins_late_is_included() -> None:
    world = make_world(training=TRAINING)
    nodes = honest_nodes(world)
    for node in nodes.values():
        node.seconds = 5.0
    nodes[4].online_from = 6.0
    store = MemoryRunStore(start(world))
    run_once(world, nodes, store)
    answered = [line["sites"] for line in store.progress]
    assert "west" not in answered[0]
    assert "west" in answered[-1]


def hostile(world: World) -> dict[str, Behaviour]:
    """Answers that must count for nothing; all of them from the node of `west`."""

    def tampered(change: Callable[[bytes, dict[str, Any]], RecordDict]) -> Behaviour:
        def answer(message: Message) -> RecordDict:
            envelope, _ = unpack(message.content)
            good = honest(world, "west")(message)
            assert isinstance(good, RecordDict)
            return change(envelope, dict(unpack(good)[1]))

        return answer

    def signed_by(site: str, key: str, plan: bytes, arrays: dict[str, Any]) -> RecordDict:
        return pack(sign_update(site, world.sites[key], plan, arrays), arrays)

    def poison(value: float) -> Callable[[bytes, dict[str, Any]], RecordDict]:
        def change(plan: bytes, arrays: dict[str, Any]) -> RecordDict:
            return signed_by("west", "west", plan, {k: np.full_like(v, value) for k, v in arrays.items()})

        return change

    return {
        "nan": tampered(poison(float("nan"))),
        "infinite": tampered(poison(float("inf"))),
        "another site's name": tampered(lambda plan, arrays: signed_by("north", "west", plan, arrays)),
        "another plan": tampered(lambda plan, arrays: signed_by("west", "west", plan + b" ", arrays)),
        "one array more": tampered(
            lambda plan, arrays: signed_by("west", "west", plan, arrays | {"more": np.zeros(1, np.float32)})
        ),
        "float64": tampered(
            lambda plan, arrays: signed_by("west", "west", plan, {k: v.astype(np.float64) for k, v in arrays.items()})
        ),
        "no envelope": lambda message: RecordDict({"arrays": ArrayRecord()}),
        "one record more": lambda message: RecordDict(
            {"envelope": ConfigRecord({"envelope": b""}), "arrays": ArrayRecord(), "loss": ConfigRecord({"loss": 0.1})}
        ),
        "not an envelope": lambda message: pack(b"\xff{", {}),
        "nothing": lambda message: RecordDict(),
    }


@pytest.mark.parametrize("name", hostile(make_world()))
def test_an_answer_that_does_not_verify_is_counted_and_ignored(name: str) -> None:
    world = make_world(training=TRAINING | {"rounds": 1})
    without = {number: node for number, node in honest_nodes(world).items() if number != 4}
    expected, _ = run_once(world, without)
    store = MemoryRunStore(start(world))
    found, _ = run_once(world, without | {4: Node(behaviour=hostile(world)[name])}, store)
    assert [line["unverified"] for line in store.progress] == [1, 1]
    assert digest_parameters(found.model.parameters) == digest_parameters(expected.model.parameters)


class UnreadableGrid(SilentGrid):
    """A Grid that fails, as Flower's does, on a batch with a reply of node 4, and loses the rest of the batch."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        if any(reply.metadata.src_node_id == 4 for reply in replies):
            raise KeyError("an object that the tree does not hold")
        return replies


def test_a_reply_that_flower_cannot_read_is_counted_and_costs_nobody_else() -> None:
    world = make_world(training=TRAINING | {"rounds": 1})
    expected, _ = run_once(world, {number: node for number, node in honest_nodes(world).items() if number != 4})
    store, clock = MemoryRunStore(start(world)), StillClock()
    found = conduct(make_run(world, clock, store), UnreadableGrid(honest_nodes(world), clock))
    assert [line["unverified"] for line in store.progress] == [1, 1]
    assert [line["sites"] for line in store.progress] == [["east", "north", "south"]] * 2
    assert digest_parameters(found.model.parameters) == digest_parameters(expected.model.parameters)


class UnreachableGrid(SilentGrid):
    """A Grid whose SuperLink has gone."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise httpx.ConnectError("refused")


def test_a_link_that_is_gone_is_no_sites_fault() -> None:
    world, clock = make_world(training=TRAINING), StillClock()
    store = MemoryRunStore(start(world))
    with pytest.raises(httpx.ConnectError):
        conduct(make_run(world, clock, store), UnreachableGrid(honest_nodes(world), clock))
    assert store.progress == []


def test_a_site_is_counted_once_whatever_number_of_nodes_answers_for_it() -> None:
    world = make_world(training=TRAINING | {"rounds": 1})
    nodes = honest_nodes(world) | {9: Node(behaviour=honest(world, "north"))}
    expected, _ = run_once(world, honest_nodes(world))
    found, _ = run_once(world, nodes)
    assert digest_parameters(found.model.parameters) == digest_parameters(expected.model.parameters)


def test_errors_of_the_transport_are_counted_by_code_and_asked_again() -> None:
    world = make_world(training=TRAINING | {"rounds": 1, "minimum_sites": 4})
    nodes, failures = honest_nodes(world), iter([5, 8])
    answer = nodes[2].behaviour

    def recovering(message: Message) -> RecordDict | Error | None:
        code = next(failures, None)
        return answer(message) if code is None else Error(code, "the text is not trusted")

    nodes[2].behaviour = recovering
    store = MemoryRunStore(start(world))
    run_once(world, nodes, store)
    assert store.progress[0]["errors"] == {"app-crashed": 1, "node-unavailable": 1}
    assert store.progress[0]["sites"] == sorted(SITES)


def test_a_node_that_always_fails_is_asked_three_times_in_a_round() -> None:
    world = make_world(training=TRAINING | {"minimum_sites": 4})
    nodes = honest_nodes(world) | {4: Node(behaviour=lambda message: Error(2))}
    with pytest.raises(RunError):
        run_once(world, nodes)
    assert len(nodes[4].received) == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda changes: "-".join(map(str, changes.values())))
@pytest.mark.parametrize("saved", [True, False], ids=["failed but persisted", "failed and not persisted"])
def test_a_run_that_was_killed_anywhere_ends_with_the_same_bits(algorithm: dict[str, Any], saved: bool) -> None:
    world = make_world(training=TRAINING | algorithm, evaluation={"noise_multiplier": 6.0, "rounds": [0, 1]})
    calm = MemoryRunStore(start(world))
    expected, _ = run_once(world, honest_nodes(world), calm)
    assert calm.released is not None
    for at in range(1, 7):  # three trainings and three evaluations
        fragile = FragileStore(start(world), at=at, saved=saved)
        with pytest.raises(Killed):
            run_once(world, honest_nodes(world), fragile)
        store = MemoryRunStore(fragile.load())
        nodes = honest_nodes(world)
        found, _ = run_once(world, nodes, store)
        assert store.released is not None
        for ours, theirs in [
            (found.model.parameters, expected.model.parameters),
            (found.model.first_moment, expected.model.first_moment),
            (found.model.second_moment, expected.model.second_moment),
            (store.released[0], calm.released[0]),
        ]:
            assert digest_parameters(ours) == digest_parameters(theirs)
        assert store.released[1] == calm.released[1]
        assert len(nodes[1].received) == (6 - at if saved else 7 - at)


def test_a_killed_run_asks_the_very_same_plan_again() -> None:
    world = make_world(training=TRAINING)
    fragile, nodes = FragileStore(start(world), at=1, saved=False), honest_nodes(world)
    with pytest.raises(Killed):
        run_once(world, nodes, fragile)
    run_once(world, nodes, MemoryRunStore(fragile.load()))
    first, again = (unpack(message.content)[0] for message in nodes[1].received[:2])
    assert first == again


def test_a_failed_run_goes_on_under_its_own_id_after_a_retry() -> None:
    world = make_world(training=TRAINING)
    store = MemoryRunStore(start(world))
    with pytest.raises(RunError):
        run_once(world, {}, store)
    store.save(retry_round(world.study, store.load()))
    state, _ = run_once(world, honest_nodes(world), store)
    assert state.run == RUN
    assert [record.attempt for record in state.history] == [1, 1, 1, 1]


def test_another_study_than_the_runs_is_an_error() -> None:
    world, other = make_world(), make_world()
    with pytest.raises(RunError, match="study"):
        run_once(world, honest_nodes(world), MemoryRunStore(start(other)))
