"""What `executor.py` uses of Flower's private API. A failure means: read Flower's changes before raising the pin."""

from __future__ import annotations

import importlib.metadata
import inspect

import flwr.supernode.runtime.run_clientapp as stock
import pytest
from flwr.app import Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode, SubStatus
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullAppMessagesResponse,
    PullTaskInputResponse,
    PushTaskOutputRequest,
)
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from fedtwin_client import executor

CHANGED = "Flower changed what client/fedtwin_client/executor.py relies on: "


def test_flower_is_the_version_that_was_read() -> None:
    assert importlib.metadata.version("flwr") == "1.41.0", CHANGED + "the version itself"


@pytest.mark.parametrize(
    "name",
    [
        "AcquireTask",
        "PullTaskInput",
        "PullMessages",
        "PullObject",
        "ConfirmMessageReceived",
        "PushMessages",
        "PushObject",
        "PushTaskOutput",
        "SendTaskHeartbeat",
    ],
)
def test_the_runtime_client_has_the_calls_of_a_task(name: str) -> None:
    assert list(inspect.signature(getattr(RuntimeHttpClient, name)).parameters) == ["self", "request"], CHANGED + name


def test_the_client_is_made_and_holds_its_connection_as_expected() -> None:
    parameters = inspect.signature(ProtobufClient.__init__).parameters
    assert {"base_url", "interceptors", "verify", "retry_invoker"} <= set(parameters), CHANGED + "ProtobufClient"
    assert parameters["retry_invoker"].default is None, CHANGED + "retries by default"
    source = inspect.getsource(ProtobufClient._send)
    assert "self._client.send(current_context.request)" in source, CHANGED + "ProtobufClient._client"


def test_messages_have_the_fields_that_are_read() -> None:
    fields = (
        (AcquireTaskRequest.DESCRIPTOR, {"supported_task_types"}),
        (AcquireTaskResponse.DESCRIPTOR, {"task", "token"}),
        (PullTaskInputResponse.DESCRIPTOR, {"task_id", "run", "context", "fab"}),
        (PullAppMessagesResponse.DESCRIPTOR, {"messages_list", "message_object_trees"}),
        (PushTaskOutputRequest.DESCRIPTOR, {"sub_status", "details", "context"}),
    )
    for descriptor, names in fields:
        assert names <= set(descriptor.fields_by_name), CHANGED + descriptor.name


def test_objects_are_pulled_with_waits_that_the_caller_chooses() -> None:
    parameters = inspect.signature(pull_and_inflate_object_from_tree).parameters
    wanted = {"return_type", "max_time", "max_tries_per_object", "initial_backoff", "backoff_cap"}
    assert wanted <= set(parameters), CHANGED + "pull_and_inflate_object_from_tree"


def test_the_stock_client_app_process_pulls_and_pushes_as_ours_does() -> None:
    pulled = inspect.getsource(stock.pull_task_input)
    for line in (
        "PullTaskInput(",
        "TaskIdentity.task_id",
        "TaskIdentity.run_id",
        "TaskIdentity.node_id",
        "_message_id",
    ):
        assert line in pulled, CHANGED + f"pull_task_input without {line}"
    assert list(inspect.signature(stock.push_message).parameters) == ["client", "message", "context"], CHANGED + "push"
    assert set(TaskIdentity.__annotations__) == {"_task_id", "_run_id", "_node_id"}, CHANGED + "TaskIdentity"


def test_secrets_and_tokens_travel_where_the_supernode_looks() -> None:
    assert TASK_TOKEN_HEADER == "flwr-task-token", CHANGED + "TASK_TOKEN_HEADER"
    parameters = inspect.signature(SuperExecAuthHttpInterceptor.__init__).parameters
    assert {"master_secret", "protected_methods"} <= set(parameters), CHANGED + "SuperExecAuthHttpInterceptor"
    assert "component_name" in inspect.signature(RuntimeVersionHttpInterceptor.__init__).parameters, CHANGED + "version"


def test_constants_mean_what_they_meant() -> None:
    assert str(TaskType.CLIENT_APP) == "flwr-clientapp", CHANGED + "TaskType.CLIENT_APP"
    assert (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.CLIENT_APP_CRASHED) == (2, 8), CHANGED + "ErrorCode"
    assert (SubStatus.COMPLETED, SubStatus.FAILED) == ("completed", "failed"), CHANGED + "SubStatus"
    # A task that is claimed and silent is taken for dead after this; ours beats well within.
    assert 2 * executor.HEARTBEAT_SECONDS <= HEARTBEAT_DEFAULT_INTERVAL, CHANGED + "HEARTBEAT_DEFAULT_INTERVAL"


def test_the_stamps_of_a_reply_can_be_set() -> None:
    stamps = Metadata(
        run_id=1,
        message_id="a",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="",
        created_at=1_000.0,
        ttl=1e12,
        message_type="train",
    )
    request = make_message(stamps, RecordDict())
    reply = Message(RecordDict(), reply_to=request)
    assert reply.metadata.created_at > 1_000.0
    executor.hide_timing(reply, request)
    assert (reply.metadata.created_at, reply.metadata.ttl) == (1_000.0, 1e12), CHANGED + "a message's stamps"
