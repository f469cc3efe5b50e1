"""The hospital's own executor: takes tasks from the local SuperNode and runs the installed app, never shipped code.

Design note: a stock SuperNode unpacks the bundle a server sends and puts it first on `sys.path`, so whoever starts a
run chooses the code. Here the bundle is bytes that are hashed and compared with the site's allow-list, nothing else.
The process is long-lived, so that a task costs milliseconds instead of a fresh interpreter, and its waits are its own:
Flower waits a second whenever an object is registered but not stored yet, which a fast executor meets all the time.

What leaves when something fails is one fixed code and text. The text of an exception could hold a patient's value, so
it is neither sent nor logged: the local log has the type of the error and the line of our own code.

This file and `supernode.py` are the only ones that use Flower's private API; `tests/client/test_executor_contract.py`
fails when Flower changes what is used here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

from fedtwin_shared.errors import FedtwinError

Handler = Callable[[Message, Context], Message]  # the installed ClientApp, or anything called like it
Outcome = Literal["completed", "refused", "failed", "abandoned"]

LOGGER: Final = logging.getLogger("fedtwin.executor")
FAILURE: Final = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "The site could not complete the task.")
STOPPED: Final = Error(ErrorCode.CLIENT_APP_CRASHED, "The site stopped before the task was complete.")
HEARTBEAT_SECONDS: Final = 10.0  # Flower gives a claimed task 30 s, a running one 60 s, until it is taken for dead
LONGEST_RECONNECT_SECONDS: Final = 2.0  # a SuperNode restarts in about 2 s; asking loopback costs nothing
LONGEST_OBJECT_SECONDS: Final = 0.5  # cap of the wait for an object that is registered but not stored yet
INPUT_DEADLINE_SECONDS: Final = 120.0  # a large model through a slow line; the round's own deadline is the server's
REQUEST_SECONDS: Final = 10.0  # one request over loopback; at most 5 MiB, in which Flower cuts an array
_ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"


class BundleRefusedError(FedtwinError):
    """The bundle of a run is not on this site's allow-list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """What the site keeps about one task. Stays here: the time of a task tells how many patients it read."""

    outcome: Outcome
    message_type: str
    bundle_digest: str
    seconds: float
    failure: str = ""  # type and own location, never a text


def verify_bundle(content: bytes, *, allowed_bundles: frozenset[str]) -> str:
    """The lower-case hex SHA-256 of a bundle that this site allows.

    Raises BundleRefusedError for any other. An empty allow-list refuses everything.

    >>> empty = hashlib.sha256(b"").hexdigest()
    >>> verify_bundle(b"", allowed_bundles=frozenset({empty})) == empty
    True
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest not in allowed_bundles:
        raise BundleRefusedError(field="bundle", expected="a digest on the site's allow-list", found=digest)
    return digest


def execute_tasks(
    runtime_address: str,
    app: Handler,
    *,
    allowed_bundles: frozenset[str],
    refuse: Callable[[Message], Message],
    stop: threading.Event,
    poll_seconds: float = 0.02,
    secret_file: Path | None = None,
    on_task: Callable[[TaskRecord], None] | None = None,
) -> None:
    """Run the tasks of the SuperNode at `runtime_address` (host:port, loopback) until `stop` is set.

    `refuse` makes the site's signed refusal, an ordinary reply. `secret_file` holds the secret that the SuperNode was
    started with; without one, any local process can take a task. The app sees a fresh `Context`: what it must remember
    it keeps on the site's own disk.

    Guarantees:
      - only `app` runs; the bundle is never unpacked and never on sys.path
      - a bundle that is not on the allow-list is answered with `refuse(message)`, and `app` does not see the message
      - an exception in `app` or `refuse` leaves the site as one fixed code and text
      - a SuperNode that is away, or restarts, is waited for; a task it has forgotten is abandoned
      - returns within a second of `stop`, also while a task runs: the SuperNode is told, the app's thread is left to
        the end of the process
    """
    wait = poll_seconds
    with _Runtime(runtime_address, secret_file=secret_file, poll_seconds=poll_seconds, stop=stop) as runtime:
        while not stop.wait(wait):
            try:
                taken = runtime.acquire()
            except _GONE as error:
                if wait <= poll_seconds:
                    LOGGER.warning("SuperNode at %s does not answer (%s)", runtime_address, type(error).__name__)
                wait = min(LONGEST_RECONNECT_SECONDS, max(2 * wait, 0.1))
                continue
            wait = poll_seconds
            if taken:
                record = _execute_one(runtime, app, allowed_bundles=allowed_bundles, refuse=refuse)
                LOGGER.info("%s: %s in %.3f s %s", record.message_type, record.outcome, record.seconds, record.failure)
                if on_task is not None:
                    on_task(record)


def describe_failure(error: BaseException) -> str:
    """Type of the error and the innermost line of our own code that it passed; never its text.

    >>> describe_failure(ValueError("heart rate 900"))
    'ValueError'
    """
    where = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        if any(part.startswith("fedtwin_") for part in path.parts):
            where = f" at {path.name}:{line}"
    return type(error).__name__ + where


# A SuperNode that is away, or that has forgotten the task: 401 after a restart, 403 when the run has stopped.
_GONE: Final = (httpx.TransportError, httpx.HTTPStatusError)


class _InputError(Exception):
    """The SuperNode handed out a task whose message did not come in time, or not before the stop."""


class _TaskToken:
    """Adds the token of the task in hand, if any, to each request: in memory only, never on a command line."""

    def __init__(self) -> None:
        self.token: str | None = None

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        if self.token is not None:
            context.request.headers[TASK_TOKEN_HEADER] = self.token
        return call_next(context)


class _Runtime:
    """One connection to the SuperNode's Runtime API, and the task in hand."""

    def __init__(self, address: str, *, secret_file: Path | None, poll_seconds: float, stop: threading.Event) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # or it writes a line for each of 50 polls a second
        self.stop = stop
        self._token = _TaskToken()
        self._poll_seconds = poll_seconds
        interceptors: list[ProtobufClientInterceptor] = [
            RuntimeVersionHttpInterceptor(component_name="SuperExec"),
            self._token,
        ]
        if secret_file is not None:
            secret = SuperExecAuthHttpInterceptor(master_secret=secret_file.read_bytes(), protected_methods={_ACQUIRE})
            interceptors.append(secret)
        # No retry invoker: Flower's ends the process on 401 and waits a second on its first retry.
        self._client = RuntimeHttpClient(f"http://{address}", interceptors=interceptors, verify=False)
        # Flower's own would follow a proxy of the hospital's environment, even to loopback.
        self._client._client = httpx.Client(timeout=REQUEST_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def acquire(self) -> bool:
        """Take the oldest pending task, if there is one."""
        self._token.token = None
        response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        if not response.HasField("task") or not response.token:
            return False
        self._token.token = response.token
        return True

    def pull_input(self) -> tuple[Message, Context, bytes]:
        """The message, the context and the bundle of the task in hand."""
        response = self._client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = response.task_id
        TaskIdentity.run_id = response.run.run_id
        TaskIdentity.node_id = response.context.node_id
        context = context_from_proto(response.context)
        message = self._pull_message(Node(node_id=context.node_id), context.run_id)
        return message, context, response.fab.content

    def _pull_message(self, node: Node, run_id: int) -> Message:
        """The message itself. The SuperNode creates the task before it has stored the message or its objects."""
        deadline = time.monotonic() + INPUT_DEADLINE_SECONDS
        while not (response := self._client.PullMessages(PullAppMessagesRequest())).messages_list:
            if self.stop.wait(self._poll_seconds) or not time.monotonic() < deadline:
                raise _InputError
        tree = response.message_object_trees[0]
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self._pull_object, node, run_id),
            make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, node, run_id),
            return_type=Message,
            max_time=INPUT_DEADLINE_SECONDS,
            max_tries_per_object=None,
            initial_backoff=self._poll_seconds,
            backoff_cap=LONGEST_OBJECT_SECONDS,
        )
        # A deflated message does not hold its own identity (Flower does the same).
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def _pull_object(self, request: PullObjectRequest) -> PullObjectResponse:
        if self.stop.is_set():
            raise _InputError
        return self._client.PullObject(request)

    def beat(self) -> None:
        """Tell the SuperNode that the task in hand is alive. A SuperNode that is away learns of the task's end late."""
        with contextlib.suppress(*_GONE):
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    def push_reply(self, reply: Message, context: Context) -> None:
        """Hand the reply over, then close the task. The context stays here: the SuperNode holds no state of the app."""
        push_message(self._client, reply, context)
        status = SubStatus.FAILED if reply.has_error() else SubStatus.COMPLETED
        details = (reply.error.reason or "") if reply.has_error() else ""
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=details))


class _Answer:
    """What the app's thread leaves behind."""

    reply: Message | None = None
    failure: str = ""


def _execute_one(
    runtime: _Runtime,
    app: Handler,
    *,
    allowed_bundles: frozenset[str],
    refuse: Callable[[Message], Message],
) -> TaskRecord:
    """Pull, check, run, answer: the task in hand, once."""
    started = time.monotonic()
    message_type, digest, failure = "", "", ""
    outcome: Outcome = "completed"
    try:
        message, context, bundle = runtime.pull_input()
        message_type, digest = message.metadata.message_type, hashlib.sha256(bundle).hexdigest()
        handler = app
        try:
            verify_bundle(bundle, allowed_bundles=allowed_bundles)
        except BundleRefusedError as refusal:
            LOGGER.warning("refused: %s", refusal)
            handler, outcome = (lambda request, _: refuse(request)), "refused"
        answer = _run(handler, message, context, runtime=runtime)
        if answer is None:
            outcome, reply = "abandoned", Message(STOPPED, reply_to=message)
        elif answer.reply is None:
            outcome, failure, reply = "failed", answer.failure, Message(FAILURE, reply_to=message)
        else:
            reply = answer.reply
        hide_timing(reply, message)
        runtime.push_reply(reply, context)
    except (*_GONE, _InputError, ObjectPullError) as error:
        outcome, failure = "abandoned", describe_failure(error)
    except Exception as error:  # whatever a malformed message or reply raises must not end the executor
        outcome, failure = "failed", describe_failure(error)
    return TaskRecord(
        outcome=outcome,
        message_type=message_type,
        bundle_digest=digest,
        seconds=time.monotonic() - started,
        failure=failure,
    )


def hide_timing(reply: Message, request: Message) -> None:
    """Give the reply the request's own creation time and time to live: Flower stamps it when training ends.

    - how long a step took is nowhere in the reply; when it arrives is for the coordinator to see
    """
    reply.metadata.created_at, reply.metadata.ttl = request.metadata.created_at, request.metadata.ttl


def _run(handler: Handler, message: Message, context: Context, *, runtime: _Runtime) -> _Answer | None:
    """Run the handler in a thread of its own, with heartbeats; None when `stop` came first."""
    answer, done = _Answer(), threading.Event()

    def work() -> None:
        try:
            reply = handler(message, context)
            if not isinstance(reply, Message):
                raise TypeError("expected a Message")
            answer.reply = reply
        except BaseException as error:  # SystemExit too: an app must not end the hospital's executor
            answer.failure = describe_failure(error)
        finally:
            done.set()

    # A daemon: Python cannot interrupt a training step, and a stop must not wait for one.
    threading.Thread(target=work, name="fedtwin-app", daemon=True).start()
    next_beat = time.monotonic()
    while not done.wait(timeout=0.1):
        if runtime.stop.is_set():
            return None
        if time.monotonic() >= next_beat:
            runtime.beat()
            next_beat = time.monotonic() + HEARTBEAT_SECONDS
    return answer
