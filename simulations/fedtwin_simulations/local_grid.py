"""A Flower Grid in one process: the same ServerApp and ClientApp, no socket, no thread, no Ray.

Design note: every message and every reply makes the round trip through protobuf bytes, so an app that runs here gets
and gives what the wire would carry: no shared object, no array that only this process could hold. Tasks run in the
order in which they were pushed, so a run is as deterministic as its apps; each task sees a fresh Context, as at a
hospital. Where tasks run is passed in (`run_tasks`): one after the other here, or in other processes. What there is
not: expiry and lost nodes, which `fault` makes on purpose, and time, which `delay` and `clock` make up.

Private Flower API: a message needs the process-wide task identity that Flower's own runtime sets, an identity of its
own, and `Run`, which `Grid` names in its interface. `tests/simulations/test_local_grid.py` fails when these change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageBytes
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedtwin_shared.wire import ENVELOPE, RECORD

Handler = Callable[[Message, Context], Message]  # a ClientApp, or anything called like it
Fault = Callable[[Message], Error | None]  # what happens to a message instead of its task; None: nothing
Delay = Callable[[Message], float]  # seconds from a message to its reply

RUN_ID: Final = 1
FIRST_NODE_ID: Final = 1001
ABSENT: Final = Error(ErrorCode.NODE_UNAVAILABLE, "The site is not connected.")
FAILURE: Final = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "The site could not complete the task.")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTask:
    """One message for one node, as the wire would carry it."""

    node_id: int
    config: Mapping[str, str]
    message: bytes


RunTasks = Callable[[Sequence[NodeTask]], Sequence[bytes | Exception]]  # the replies, or what the app raised, in order


class LocalGrid(Grid):
    """Runs each pushed message at once; its reply waits to be pulled.

    run_tasks: who runs the messages that are pushed together; without it `app`, one task at a time.
    delay, clock: when a reply can be pulled; without them at once.

    Guarantees:
      - a node gets, and the ServerApp gets back, what was rebuilt from bytes
      - tasks run one at a time, in the order of the messages
      - an exception of the app is an error reply with a fixed text, as from a hospital's executor
      - a reply is handed out once
    """

    def __init__(
        self,
        app: Handler,
        node_configs: Sequence[Mapping[str, str]],
        *,
        fault: Fault | None = None,
        run_tasks: RunTasks | None = None,
        delay: Delay | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._configs = {FIRST_NODE_ID + place: dict(config) for place, config in enumerate(node_configs)}
        self._fault, self._delay, self._clock = fault, delay, clock
        self._run_tasks = run_tasks or (lambda tasks: [answer_task(app, task) for task in tasks])
        self._replies: dict[str, tuple[float, Message]] = {}
        self._sent = 0
        self._run = Run.create_empty(RUN_ID)
        self.failures: list[Exception] = []  # for whoever runs a simulation; a deployment has no such list
        _identify(SUPERLINK_NODE_ID)

    def set_run(self, run: Run) -> None:
        """Take another run description; part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run description."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node; part of Flower's interface, deprecated there."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Every node, in the order of the configurations."""
        return list(self._configs)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run every message's task, in order; the ids under which the replies wait."""
        identities, waiting, tasks = [], [], []
        for message in messages:
            self._sent += 1
            identity = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = identity  # the SuperLink's part
            identities.append(identity)
            error = self._fault(message) if self._fault is not None else None
            if error is not None:
                self._keep(identity, message, _encode_reply(Message(error, reply_to=message)))
                continue
            node_id = message.metadata.dst_node_id
            waiting.append((identity, message))
            tasks.append(NodeTask(node_id=node_id, config=self._configs[node_id], message=_encode(message)))
        for (identity, message), reply in zip(waiting, self._run_tasks(tasks), strict=True):
            if isinstance(reply, Exception):
                self.failures.append(reply)
                reply = _encode_reply(Message(FAILURE, reply_to=message))
            self._keep(identity, message, reply)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there under these ids, each once."""
        now = self._clock()
        there = [one for one in message_ids if one in self._replies and self._replies[one][0] <= now]
        return [self._replies.pop(identity)[1] for identity in there]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull; nothing is ever waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _keep(self, identity: str, message: Message, reply: bytes) -> None:
        due = self._clock() + (self._delay(message) if self._delay is not None else 0.0)
        self._replies[identity] = due, _decode(reply)


def answer_task(app: Handler, task: NodeTask) -> bytes | Exception:
    """Return the app's reply to one task, or what it raised; a hospital's executor hides that too."""
    message = _decode(task.message)
    context = Context(
        run_id=RUN_ID,
        node_id=task.node_id,
        node_config=dict(task.config),
        state=RecordDict(),
        run_config={},
        series_id=RUN_ID,
    )
    _identify(task.node_id)
    try:
        return _encode_reply(app(message, context))
    except Exception as failure:
        return failure
    finally:
        _identify(SUPERLINK_NODE_ID)


def read_place(message: Message) -> int:
    """Return the place of the message's node in the list of configurations."""
    return message.metadata.dst_node_id - FIRST_NODE_ID


def read_envelope(message: bytes | Message) -> bytes:
    """Return the signed envelope that a message of ours carries, as it is."""
    record = (_decode(message) if isinstance(message, bytes) else message).content[RECORD]
    assert isinstance(record, ConfigRecord)
    envelope = record[ENVELOPE]
    assert isinstance(envelope, bytes)
    return envelope


def run_local(
    server_app: ServerApp,
    client_app: Handler,
    node_configs: Sequence[Mapping[str, str]],
    *,
    run_config: Mapping[str, str] | None = None,
    fault: Fault | None = None,
    run_tasks: RunTasks | None = None,
    delay: Delay | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> LocalGrid:
    """Run the ServerApp to its end over one node per configuration; the grid, for what it noted.

    The ServerApp's exceptions come through. One run at a time in a process: Flower's task identity is process-wide.
    """
    grid = LocalGrid(client_app, node_configs, fault=fault, run_tasks=run_tasks, delay=delay, clock=clock)
    context = Context(
        run_id=RUN_ID,
        node_id=SUPERLINK_NODE_ID,
        node_config={},
        state=RecordDict(),
        run_config=dict(run_config or {}),
        series_id=RUN_ID,
    )
    server_app(grid=grid, context=context)
    return grid


def _identify(node_id: int) -> None:
    """Set who makes the next messages; Flower's runtime does this once per process."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, node_id, 1


def _encode_reply(reply: Message) -> bytes:
    """A reply with an identity of its own, as the wire would carry it."""
    reply.metadata.__dict__["_message_id"] = f"reply-to-{reply.metadata.reply_to_message_id}"
    return _encode(reply)


def _encode(message: Message) -> bytes:
    encoded: bytes = message_to_proto(message).SerializeToString()
    return encoded


def _decode(data: bytes) -> Message:
    """The message as the other side of a wire would make it."""
    parsed = MessageBytes.FromString(data)
    message = message_from_proto(parsed)
    message.metadata.__dict__["_message_id"] = parsed.metadata.message_id
    return message
