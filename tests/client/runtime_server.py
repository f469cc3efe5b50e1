"""The half of a SuperNode that an executor meets: Flower's own Runtime API on loopback, fed by a test."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fedtwin_shared.supervision import wait_until

RUN_ID, NODE_ID, SERVER_ID = 7, 11, 1


class RuntimeServer:
    """A SuperNode without a coordinator: gives out messages and collects replies."""

    def __init__(self, port: int, *, secret_file: Path | None = None) -> None:
        self.port = port
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        state = factory.state()
        assert isinstance(state, InMemoryNodeState)
        self.state = state
        self.state.set_node_id(NODE_ID)
        secret = None if secret_file is None else secret_file.read_bytes()
        config = uvicorn.Config(
            create_app(factory, secret),
            host="127.0.0.1",
            port=port,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, what="Runtime API", deadline_seconds=10, interval_seconds=0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)

    def give(self, content: RecordDict, bundle: bytes, *, objects_after_seconds: float = 0.0) -> str:
        """Store a message and its task as the SuperNode does; the objects may come later. The message's id."""
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_ID, 1
        message = Message(content, NODE_ID, "query")
        digest = hashlib.sha256(bundle).hexdigest()
        run = Run.create_empty(RUN_ID)
        run.fab_hash, run.series_id = digest, RUN_ID
        context = Context(
            run_id=RUN_ID, node_id=NODE_ID, node_config={}, state=RecordDict(), run_config={}, series_id=RUN_ID
        )
        self.state.store_run(run)
        self.state.set_run_series_context(RUN_ID, context)
        self.state.store_fab(Fab(digest, bundle, {}))
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN_ID, fab_hash=digest)
            self.state.object_store.preregister(RUN_ID, get_object_tree(message))
            self.state.store_message(message)
            objects = {identity: item.deflate() for identity, item in get_all_nested_objects(message).items()}

        def store() -> None:
            for identity, deflated in objects.items():
                self.state.object_store.put(identity, deflated)

        if objects_after_seconds:
            threading.Timer(objects_after_seconds, store).start()
        else:
            store()
        return message.metadata.message_id

    def reply(self, *, deadline_seconds: float = 10.0) -> tuple[Message, bytes]:
        """The next reply, and every byte of it that the SuperNode would send on."""
        found: list[Message] = []
        contents: dict[str, bytes] = {}

        def look() -> bool:
            found.extend(self.state.get_messages_legacy(is_reply=True))
            return bool(found)

        def whole() -> bool:
            store = self.state.object_store
            tree = store.get_object_tree(found[0].metadata.message_id)
            contents.update({node.object_id: store.get(node.object_id) or b"" for node in iterate_object_tree(tree)})
            return all(contents.values())

        wait_until(look, what="reply", deadline_seconds=deadline_seconds, interval_seconds=0.01)
        wait_until(whole, what="reply's objects", deadline_seconds=deadline_seconds, interval_seconds=0.01)
        everything = b"".join(contents.values())
        message = inflate_object_from_contents(found[0].metadata.message_id, contents)
        assert isinstance(message, Message)
        return message, everything

    def task_statuses(self) -> list[tuple[str, str, str]]:
        """Status, sub-status and details of every task, oldest first."""
        return [(t.status.status, t.status.sub_status, t.status.details) for t in self.state.get_tasks()]
