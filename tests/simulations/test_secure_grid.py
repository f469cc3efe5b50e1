"""Secure aggregation over Flower's messages on the one-process Grid: sites lost, slow or hostile at every stage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedtwin_client.client_app import make_secure_app
from fedtwin_client.secure_round import Compute, SecureRounds
from fedtwin_client.secure_site import SecureSite
from fedtwin_client.secure_store import SqliteInstanceStore
from fedtwin_server.secagg_workflow import FlowerExchange
from fedtwin_server.secure_rounds import Aggregate, SecureCoordinator
from fedtwin_shared.secagg.message import MESSAGE_TYPE, Phase, ProtocolError, sign_message
from fedtwin_shared.secagg.order import ROUTES, Answer, decode_answer, encode_answer
from fedtwin_shared.secagg.terms import Setup, Step, Terms
from fedtwin_shared.signing import digest, sign_envelope
from fedtwin_shared.wire import pack_bytes, unpack_bytes
from fedtwin_simulations.local_grid import FIRST_NODE_ID, LocalGrid
from tests.shared.secagg.assembly import RUN, STUDY, Integers, make_terms, random_vectors, signing_key

LOST = Error(ErrorCode.NODE_UNAVAILABLE, "lost")
PLAN, MODEL = b"the plan", b"the model"
LENGTH = 50
PATIENCE, DEADLINE = 10.0, 60.0
HOSTILE = "site-001"
BAD_NODE = FIRST_NODE_ID + 1


class Watch:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Consortium:
    """Real sites on real stores behind a Grid, and the coordinator's own code in front of it."""

    def __init__(self, folder: Path, terms: Terms) -> None:
        self.terms, self.watch, self.sent = terms, Watch(), list[tuple[str, int]]()
        self.vectors = random_vectors(terms.names, LENGTH, seed=9)
        self.computed = dict.fromkeys(terms.names, 0)
        self.sites = {name: self._open(name, folder / name) for name in terms.names}
        self.lose: Callable[[str, int], bool] = lambda route, node: False
        self.delay: Callable[[str, int], float] = lambda route, node: 0.0
        self.tamper: Callable[[str, int, bytes], bytes] = lambda route, node, data: data
        app = make_secure_app(lambda context: self.sites[str(context.node_config["site"])])
        self.grid = LocalGrid(
            functools.partial(self._handle, app),
            [{"site": name} for name in terms.names],
            fault=self._fault,
            delay=lambda message: self.delay(message.metadata.message_type, message.metadata.dst_node_id),
            clock=self.watch,
        )
        exchange = FlowerExchange(
            self.grid, patience_seconds=PATIENCE, deadline_seconds=DEADLINE, clock=self.watch, sleep=self.watch.sleep
        )
        self.coordinator = SecureCoordinator(terms=terms, study=STUDY, run=RUN, exchange=exchange)

    def aggregate(self) -> Aggregate:
        return self.coordinator.aggregate(make_step=make_step, plan=PLAN, model=MODEL)

    def sum_of(self, names: Sequence[str]) -> Integers:
        return np.asarray(np.sum([self.vectors[name] for name in names], axis=0))

    def _open(self, name: str, folder: Path) -> SecureSite:
        sign = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(name))

        def prepare(setup: Setup, instance: int, plan: bytes, model: bytes) -> tuple[Step, Compute]:
            def compute() -> Integers:
                self.computed[name] += 1
                return self.vectors[name]

            assert (plan, model) == (PLAN, MODEL)
            return make_step(instance), compute

        def find(study: str, run: str, number: int) -> Setup | None:
            return Setup(terms=self.terms, study=study, run=run, number=number) if study == STUDY else None

        rounds = SecureRounds(name=name, sign=sign, store=SqliteInstanceStore(folder))
        return SecureSite(rounds=rounds, find_setup=find, prepare_step=prepare)

    def _fault(self, message: Message) -> Error | None:
        route, node = message.metadata.message_type, message.metadata.dst_node_id
        self.sent.append((route, node))
        return LOST if self.lose(route, node) else None

    def _handle(self, app: ClientApp, message: Message, context: Context) -> Message:
        reply = app(message, context)
        data = self.tamper(message.metadata.message_type, message.metadata.dst_node_id, unpack_bytes(reply.content))
        return Message(pack_bytes(data), reply_to=message)


def make_step(instance: int) -> Step:
    return Step(instance=instance, round=instance + 1, attempt=1, plan=digest(PLAN), model=digest(MODEL), length=LENGTH)


def route(phase: Phase) -> str:
    return f"train.{ROUTES[phase]}"


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    """Four sites, of which one may be lost; two steps with a set-up."""
    return Consortium(tmp_path, make_terms(4, dropouts=1, instances=2))


def test_steps_and_set_ups_follow_one_another(consortium: Consortium) -> None:
    for _ in range(3):
        found = consortium.aggregate()
        assert found.survivors == consortium.terms.names
        assert np.array_equal(found.total, consortium.sum_of(found.survivors))
        assert found.liars == ()
    asked = [name for name, node in consortium.sent if node == FIRST_NODE_ID]
    set_up, step = [route(phase) for phase in list(Phase)[:3]], [route(phase) for phase in list(Phase)[3:]]
    assert asked == [*set_up, *step, *step, *set_up, *step]
    assert consortium.watch.now == 0  # nothing was waited for


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("manner", ["error", "silence"])
def test_a_site_that_is_lost_at_any_stage_leaves_the_exact_sum_of_the_others(
    consortium: Consortium, phase: Phase, manner: str
) -> None:
    order = [route(one) for one in Phase]
    gone = order[order.index(route(phase)) :]

    def is_gone(name: str, node: int) -> bool:
        return node == BAD_NODE and name in gone

    if manner == "error":
        consortium.lose = is_gone
    else:  # the site may have done its part; its answer never comes
        consortium.delay = lambda name, node: 1e9 if is_gone(name, node) else 0.0
    found = consortium.aggregate()
    masked = phase in (Phase.AGREEMENT, Phase.UNMASKING)
    expected = [name for name in consortium.terms.names if masked or name != HOSTILE]
    assert list(found.survivors) == expected
    assert np.array_equal(found.total, consortium.sum_of(expected))
    if manner == "error":
        assert consortium.watch.now == 0
    else:
        assert consortium.watch.now <= 6 * (PATIENCE + 1)


@pytest.mark.parametrize("phase", list(Phase))
def test_too_few_sites_end_a_step_before_anything_is_unmasked(consortium: Consortium, phase: Phase) -> None:
    # Two of four are lost from this phase on, where one may be and three are needed to agree.
    order = [route(one) for one in Phase]
    gone = order[order.index(route(phase)) :]
    consortium.lose = lambda name, node: node <= BAD_NODE and name in gone
    with pytest.raises(ProtocolError, match=r"at least 3 sites|shares of 3 survivors"):
        consortium.aggregate()
    revealing = [node for name, node in consortium.sent if name == route(Phase.UNMASKING)]
    assert revealing == [] or phase is Phase.UNMASKING
    consortium.lose = lambda name, node: False
    found = consortium.aggregate()  # a new set-up, with everybody
    assert np.array_equal(found.total, consortium.sum_of(consortium.terms.names))


def test_a_site_that_is_slow_but_alive_is_waited_for(consortium: Consortium) -> None:
    consortium.delay = lambda name, node: PATIENCE - 2 if node == BAD_NODE else 0.0
    found = consortium.aggregate()
    assert found.survivors == consortium.terms.names
    assert 5 * (PATIENCE - 2) <= consortium.watch.now <= 6 * PATIENCE


def test_a_site_that_is_slower_than_patience_is_left_out_and_may_come_back(consortium: Consortium) -> None:
    consortium.aggregate()
    consortium.delay = lambda name, node: PATIENCE + 5 if (node, name) == (BAD_NODE, route(Phase.MASKED)) else 0.0
    found = consortium.aggregate()
    assert HOSTILE not in found.survivors
    assert np.array_equal(found.total, consortium.sum_of(found.survivors))
    consortium.delay = lambda name, node: 0.0
    assert consortium.aggregate().survivors == consortium.terms.names
    assert set(consortium.computed.values()) == {3}


def test_answers_that_are_not_answers_are_ignored(consortium: Consortium) -> None:
    for garbage in (b"", b"\xff" * 50, encode_answer(Answer()), encode_answer(Answer(parts=(b"x",)))):
        consortium.tamper = lambda name, node, data, garbage=garbage: garbage if node == BAD_NODE else data  # type: ignore[misc]  # a default binds this value
        found = consortium.aggregate()
        assert HOSTILE not in found.survivors
        assert np.array_equal(found.total, consortium.sum_of(found.survivors))


def test_a_site_that_lies_about_its_shares_is_named_and_the_sum_is_right(consortium: Consortium) -> None:
    def lie(name: str, node: int, data: bytes) -> bytes:
        if node != BAD_NODE or name != route(Phase.UNMASKING):
            return data
        (message,) = decode_answer(data).parts
        length = int.from_bytes(message[:4], "big")
        members = consortium.coordinator._members
        assert members is not None
        binding = make_step(0).bind(members.roll.digest)
        forged = sign_message(
            bytes(36) + message[4 + length + 36 :],
            phase=Phase.UNMASKING,
            sender=HOSTILE,
            context=binding,
            sign=functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(HOSTILE)),
        )
        return encode_answer(Answer(parts=(forged,)))

    consortium.tamper = lie
    found = consortium.aggregate()
    assert found.liars == (HOSTILE,)
    assert np.array_equal(found.total, consortium.sum_of(consortium.terms.names))


def test_a_reply_that_flower_cannot_read_costs_the_others_nothing(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = consortium.grid.pull_messages

    def pull(message_ids: Sequence[str]) -> list[Message]:
        replies = real(message_ids)
        if any(reply.metadata.src_node_id == BAD_NODE for reply in replies):
            raise ValueError("what a hostile reply makes Flower raise")
        return replies

    monkeypatch.setattr(consortium.grid, "pull_messages", pull)
    found = consortium.aggregate()
    assert list(found.survivors) == [name for name in consortium.terms.names if name != HOSTILE]
    assert np.array_equal(found.total, consortium.sum_of(found.survivors))
    assert set(consortium.computed.values()) <= {0, 1}  # asked twice, computed once


def test_a_coordinator_that_forgot_everything_begins_a_new_set_up(consortium: Consortium) -> None:
    consortium.aggregate()
    exchange = consortium.coordinator.exchange
    consortium.coordinator = SecureCoordinator(terms=consortium.terms, study=STUDY, run=RUN, exchange=exchange)
    assert np.array_equal(consortium.aggregate().total, consortium.sum_of(consortium.terms.names))


def test_another_study_is_refused(consortium: Consortium) -> None:
    exchange = consortium.coordinator.exchange
    consortium.coordinator = SecureCoordinator(terms=consortium.terms, study="0" * 64, run=RUN, exchange=exchange)
    with pytest.raises(ProtocolError, match="keys: unknown sender: expected at least 3 sites, found 0"):
        consortium.aggregate()
