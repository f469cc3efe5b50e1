"""What `supernode.py` replaces in Flower. A failure means: read Flower's changes before raising the pin."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import textwrap

from flwr.app import Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.supercore.constant import PULL_INITIAL_BACKOFF
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import main as supernode_main
from flwr.supernode import start_client_internal as loop
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.servicer.runtime import runtime_handlers

from fedtwin_client.supernode import LONGEST_IDLE_SECONDS, has_waiting_reply

CHANGED = "Flower changed what client/fedtwin_client/supernode.py relies on: "


def sleeps(function: object) -> list[float]:
    """The constants of every `time.sleep(…)` in a function."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]  # any function of Flower's
    return [
        float(ast.literal_eval(node.args[0]))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    ]


def test_flower_is_the_version_that_was_read() -> None:
    assert importlib.metadata.version("flwr") == "1.41.0", CHANGED + "the version itself"


def test_the_main_loop_sleeps_where_and_as_long_as_it_did() -> None:
    assert sleeps(loop.start_client_internal) == [LONGEST_IDLE_SECONDS], CHANGED + "the idle poll"
    assert sleeps(loop._push_messages) == [0.5, 0.5], CHANGED + "the waits for a reply"
    tree = ast.parse(inspect.getsource(loop))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("time.")} == {"time.sleep"}, CHANGED + "other uses of time"


def test_the_main_loop_calls_what_is_replaced_by_name() -> None:
    body = inspect.getsource(loop.start_client_internal)
    assert "run_id = _pull_and_store_message(" in body, CHANGED + "_pull_and_store_message"
    assert "_push_messages(" in body, CHANGED + "_push_messages"
    assert "pull_objects(" in inspect.getsource(loop._pull_and_store_message), CHANGED + "pull_objects"
    assert "get_message_processing_duration(" in inspect.getsource(loop._push_messages), CHANGED + "processing time"


def test_objects_are_pulled_with_waits_that_can_be_given() -> None:
    parameters = inspect.signature(pull_objects).parameters
    assert parameters["initial_backoff"].default == PULL_INITIAL_BACKOFF == 1, CHANGED + "PULL_INITIAL_BACKOFF"
    assert "backoff_cap" in parameters, CHANGED + "backoff_cap"


def test_handlers_are_looked_up_on_the_module_at_each_call() -> None:
    assert supernode_main._RUNTIME_HANDLERS is runtime_handlers, CHANGED + "the Runtime handlers"
    assert list(inspect.signature(runtime_handlers.acquire_task).parameters) == ["request", "state"], (
        CHANGED + "acquire"
    )


def test_the_node_state_has_the_methods_that_are_wrapped() -> None:
    wanted = {
        "get_message_processing_duration": ["self", "message_id"],
        "set_node_id": ["self", "node_id"],
        "finish_task": ["self", "task_id", "sub_status", "details"],
    }
    for name, parameters in wanted.items():
        assert list(inspect.signature(getattr(InMemoryNodeState, name)).parameters) == parameters, CHANGED + name
    assert "set_node_id(node_id)" in inspect.getsource(loop.start_client_internal), CHANGED + "set_node_id"


def test_a_reply_that_was_not_sent_is_seen_and_makes_the_loop_send() -> None:
    body = inspect.getsource(loop.start_client_internal)
    assert "if run_id is None:" in body, CHANGED + "when replies are sent"
    assert "is_retrieved" in inspect.getsource(InMemoryNodeState.get_messages_legacy), CHANGED + "is_retrieved"
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3
    state = InMemoryNodeState(InMemoryObjectStore())
    request = Message(RecordDict(), dst_node_id=2, message_type="train")
    request.metadata.__dict__["_message_id"] = "request"
    state.store_message(request)
    assert not has_waiting_reply(state)
    reply = Message(RecordDict(), reply_to=request)
    reply.metadata.__dict__["_message_id"] = "reply"
    state.store_message(reply)
    assert has_waiting_reply(state)
    assert len(state.get_messages_legacy(is_reply=True)) == 1
    assert not has_waiting_reply(state)


def test_signing_off_speaks_as_a_supernode_does() -> None:
    assert list(inspect.signature(FleetHttpClient.DeactivateNode).parameters) == ["self", "request"], CHANGED + "fleet"
    parameters = list(inspect.signature(NodeAuthHttpInterceptor.__init__).parameters)
    assert parameters == ["self", "private_key", "public_key"], CHANGED + "NodeAuthHttpInterceptor"
    assert HEARTBEAT_DEFAULT_INTERVAL == 30, CHANGED + "how long a killed node stays online"


def test_the_command_line_is_understood() -> None:
    cli = importlib.import_module("flwr.supernode.cli.flower_supernode")  # its package hides it behind a function
    parser = cli._parse_args_run_supernode()
    options = {option for action in parser._actions for option in action.option_strings}
    wanted = {
        *("--isolation", "--superlink", "--root-certificates", "--auth-supernode-private-key", "--host", "--port"),
        *("--superexec-auth-secret-file", "--node-config"),
    }
    assert wanted <= options, CHANGED + f"{sorted(wanted - options)}"
