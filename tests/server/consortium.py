"""Sites without patients behind Flower's own Grid interface, and a clock that only moves when somebody sleeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedtwin_server.rounds import RunState, start_run
from fedtwin_server.run_store import MemoryRunStore, RunStore
from fedtwin_server.server_app import Run
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.round import (
    HISTOGRAM,
    REFUSAL_TYPE,
    UPDATE_TYPE,
    Arrays,
    Refusal,
    RefusalCode,
    RoundPlan,
    Task,
    UpdateStatement,
    histogram_shape,
    verify_round_plan,
)
from fedtwin_shared.signing import canonical_json, digest, sign_envelope
from fedtwin_shared.study import Study
from fedtwin_shared.wire import pack, unpack
from tests.world import World

RUN = "0" * 31 + "1"
Behaviour = Callable[[Message], RecordDict | Error | None]  # None: never answers


@dataclass(slots=True)
class StillClock:
    """Seconds that pass only in `sleep`."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def train_by_rule(study: Study, plan: RoundPlan, parameters: Arrays, site: str) -> Arrays:
    """Return arrays that depend on everything a site knows, the same every time."""
    salt = digest(f"{site} {plan.round} {plan.task}".encode())
    generator = np.random.Generator(np.random.PCG64(int(salt[:8], 16)))
    if plan.task is Task.EVALUATE:
        return {HISTOGRAM: generator.normal(10, 3, histogram_shape(study)).astype(np.float32)}
    return {
        name: (0.9 * array.astype(np.float32) + generator.normal(0, 1, array.shape)).astype(np.float32)
        for name, array in parameters.items()
    }


def sign_update(site: str, key: Ed25519PrivateKey, plan: bytes, arrays: Arrays) -> bytes:
    statement = UpdateStatement(site=site, plan=digest(plan), arrays=digest_parameters(arrays))
    return sign_envelope(canonical_json(statement.model_dump(mode="json")), payload_type=UPDATE_TYPE, key=key)


def sign_refusal(site: str, key: Ed25519PrivateKey, plan: bytes, code: RefusalCode) -> bytes:
    refusal = Refusal(site=site, plan=digest(plan), code=code)
    return sign_envelope(canonical_json(refusal.model_dump(mode="json")), payload_type=REFUSAL_TYPE, key=key)


def honest(world: World, site: str) -> Behaviour:
    """Return a site that answers every plan by `train_by_rule`."""

    def answer(message: Message) -> RecordDict:
        envelope, parameters = unpack(message.content)
        plan = verify_round_plan(envelope, coordinator=world.coordinator_key)
        assert plan.model == digest_parameters(parameters)
        arrays = train_by_rule(world.study, plan, parameters, site)
        return pack(sign_update(site, world.sites[site], envelope, arrays), arrays)

    return answer


def refusing(world: World, site: str, code: RefusalCode) -> Behaviour:
    """Return a site that says no to every plan."""

    def answer(message: Message) -> RecordDict:
        envelope, _ = unpack(message.content)
        return pack(sign_refusal(site, world.sites[site], envelope, code), {})

    return answer


@dataclass(slots=True, kw_only=True)
class Node:
    """A hospital's node: what it answers, how long that takes and since when it is online."""

    behaviour: Behaviour
    seconds: float = 0.0
    online_from: float = 0.0
    received: list[Message] = field(default_factory=list)


class SilentGrid(Grid):
    """Flower's Grid over `nodes`, on a still clock; replies are there once their time has come."""

    def __init__(self, nodes: Mapping[int, Node], clock: StillClock) -> None:
        self.nodes, self.clock = nodes, clock
        self._numbers = itertools.count(1)
        self._replies: dict[str, tuple[float, Message]] = {}
        # Flower's own processes set these before the app starts; `Message` reads them.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

    def set_run(self, run: FlowerRun) -> None:
        raise AssertionError("not asked for")

    @property
    def run(self) -> FlowerRun:
        raise AssertionError("not asked for")

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        raise AssertionError("not asked for")

    def get_node_ids(self) -> Iterable[int]:
        return [number for number, node in self.nodes.items() if node.online_from <= self.clock.now]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return [self._deliver(message) for message in messages]

    def _deliver(self, message: Message) -> str:
        name = f"message-{next(self._numbers)}"
        message.metadata.__dict__["_message_id"] = name
        node = self.nodes[message.metadata.dst_node_id]
        node.received.append(message)
        answer = node.behaviour(message)
        if answer is not None:
            self._replies[name] = (self.clock.now + node.seconds, Message(answer, reply_to=message))
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ready = [name for name in message_ids if name in self._replies and self._replies[name][0] <= self.clock.now]
        return [self._replies.pop(name)[1] for name in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("waits three seconds between two looks; the app must not use it")


def make_run(world: World, clock: StillClock, store: RunStore | None = None) -> Run:
    signed = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    return Run(
        signed=signed,
        key=world.coordinator,
        store=store or MemoryRunStore(start(world)),
        clock=clock,
        sleep=clock.sleep,
    )


def start(world: World) -> RunState:
    return start_run(world.study, run=RUN)


def honest_nodes(world: World) -> dict[int, Node]:
    return {number: Node(behaviour=honest(world, site)) for number, site in enumerate(world.sites, start=1)}
