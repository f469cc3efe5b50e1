"""A Flower Grid in one process: the same ServerApp and ClientApp, no socket, no thread, no Ray.

Design note: every message and every reply makes the round trip through protobuf bytes, so an app that runs here gets
and gives what the wire would carry: no shared object, no array that only this process could hold. Tasks run one after
the other in the order in which they were pushed, so a run is as deterministic as its apps; each task sees a fresh
Context, as at a hospital. What there is not: time-outs, expiry and lost nodes, which `fault` makes on purpose.

Private Flower API: a message needs the process-wide task identity that Flower's own runtime sets, an identity of its
own, and `Run`, which `Grid` names in its interface. `tests/simulations/test_local_grid.py` fails when these change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageBytes
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Handler = Callable[[Message, Context], Message]  # a ClientApp, or anything called like it
Fault = Callable[[Message], Error | None]  # what happens to a message instead of its task; None: nothing

RUN_ID: Final = 1
FIRST_NODE_ID: Final = 1001
FAILURE: Final = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "The site could not complete the task.")


class LocalGrid(Grid):
    """Runs each pushed message at once; its reply waits to be pulled.

    Guarantees:
      - a node gets, and the ServerApp gets back, what was rebuilt from bytes
      - tasks run one at a time, in the order of the messages
      - an exception of the app is an error reply with a fixed text, as from a hospital's executor
      - a reply is handed out once
    """

    def __init__(self, app: Handler, node_configs: Sequence[Mapping[str, str]], *, fault: Fault | None = None) -> None:
        self._app = app
        self._configs = {FIRST_NODE_ID + place: dict(config) for place, config in enumerate(node_configs)}
        self._fault = fault
        self._replies: dict[str, Message] = {}
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
        identities = []
        for message in messages:
            identity = message.object_id
            message.metadata.__dict__["_message_id"] = identity  # the SuperLink's part
            self._replies[identity] = self._execute(_rebuild(message))
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that wait under these ids, each once."""
        return [self._replies.pop(identity) for identity in list(message_ids) if identity in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull; nothing is ever waited for."""
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        error = self._fault(message) if self._fault is not None else None
        if error is not None:
            return _finish(Message(error, reply_to=message))
        context = Context(
            run_id=RUN_ID,
            node_id=node_id,
            node_config=dict(self._configs[node_id]),
            state=RecordDict(),
            run_config={},
            series_id=RUN_ID,
        )
        _identify(node_id)
        try:
            return _finish(self._app(message, context))
        except Exception as failure:  # a hospital's executor answers like this too
            self.failures.append(failure)
            return _finish(Message(FAILURE, reply_to=message))
        finally:
            _identify(SUPERLINK_NODE_ID)


def run_local(
    server_app: ServerApp,
    client_app: Handler,
    node_configs: Sequence[Mapping[str, str]],
    *,
    run_config: Mapping[str, str] | None = None,
    fault: Fault | None = None,
) -> LocalGrid:
    """Run the ServerApp to its end over one node per configuration; the grid, for what it noted.

    The ServerApp's exceptions come through. One run at a time in a process: Flower's task identity is process-wide.
    """
    grid = LocalGrid(client_app, node_configs, fault=fault)
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


def _finish(reply: Message) -> Message:
    """Give a reply its identity, and the ServerApp's side of it."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return _rebuild(reply)


def _rebuild(message: Message) -> Message:
    """The message as the other side of a wire would make it."""
    rebuilt = message_from_proto(MessageBytes.FromString(message_to_proto(message).SerializeToString()))
    rebuilt.metadata.__dict__["_message_id"] = message.metadata.message_id
    return rebuilt
