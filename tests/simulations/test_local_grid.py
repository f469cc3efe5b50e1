"""The one-process Grid with toy apps: each guarantee by name, and what Flower must keep for it."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from fedtwin_simulations.local_grid import FAILURE, LocalGrid, run_local

SITES = [{"site": "alpha"}, {"site": "beta"}, {"site": "gamma"}]


def numbers(message: Message) -> ConfigRecord:
    record = message.content["numbers"]
    assert isinstance(record, ConfigRecord)
    return record


def make_message(node_id: int, value: int = 1) -> Message:
    return Message(RecordDict({"numbers": ConfigRecord({"value": value})}), node_id, "train")


def double(message: Message, context: Context) -> Message:
    value = numbers(message)["value"]
    assert isinstance(value, int)
    content = ConfigRecord({"value": 2 * value, "site": str(context.node_config["site"])})
    return Message(RecordDict({"numbers": content}), reply_to=message)


def test_a_server_app_and_a_client_app_run_unchanged() -> None:
    client_app, server_app, seen = ClientApp(), ServerApp(), list[object]()
    client_app.train()(double)

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        replies = grid.send_and_receive([make_message(node_id, 21) for node_id in grid.get_node_ids()])
        seen.extend((numbers(reply)["site"], numbers(reply)["value"]) for reply in replies)
        seen.append(context.run_config["study"])

    run_local(server_app, client_app, SITES, run_config={"study": "digest"})
    assert seen == [("alpha", 42), ("beta", 42), ("gamma", 42), "digest"]


def test_a_node_gets_and_the_server_app_gets_back_what_was_rebuilt_from_bytes() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    held: list[Message] = []

    def keep(message: Message, context: Context) -> Message:
        held.append(message)
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        reply = Message(RecordDict({"arrays": ArrayRecord([2 * record.to_numpy_ndarrays()[0]])}), reply_to=message)
        held.append(reply)
        return reply

    grid = LocalGrid(keep, SITES)
    sent = Message(RecordDict({"arrays": ArrayRecord([array])}), grid.get_node_ids()[0], "train")
    (got,) = grid.send_and_receive([sent])
    record = got.content["arrays"]
    assert isinstance(record, ArrayRecord)
    np.testing.assert_array_equal(record.to_numpy_ndarrays()[0], 2 * array)
    assert held[0] is not sent
    assert held[0].content["arrays"] is not sent.content["arrays"]
    assert held[1] is not got
    assert got.metadata.reply_to_message_id == sent.metadata.message_id == held[0].metadata.message_id
    assert got.metadata.src_node_id == grid.get_node_ids()[0]


def test_tasks_run_one_at_a_time_in_the_order_of_the_messages() -> None:
    order: list[object] = []

    def note(message: Message, context: Context) -> Message:
        order.append(("in", context.node_config["site"]))
        reply = double(message, context)
        order.append(("out", context.node_config["site"]))
        return reply

    grid = LocalGrid(note, SITES)
    grid.push_messages([make_message(node_id) for node_id in reversed(grid.get_node_ids())])
    assert order == [(step, site) for site in ("gamma", "beta", "alpha") for step in ("in", "out")]


def test_an_exception_of_the_app_is_an_error_reply_with_a_fixed_text() -> None:
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("heart rate 900")

    grid = LocalGrid(fail, SITES)
    (reply,) = grid.send_and_receive([make_message(grid.get_node_ids()[0])])
    assert reply.has_error()
    assert reply.error.code == FAILURE.code
    assert "900" not in str(reply.error.reason)
    assert [type(failure) for failure in grid.failures] == [ValueError]


def test_a_reply_is_handed_out_once() -> None:
    grid = LocalGrid(double, SITES)
    identities = grid.push_messages([make_message(node_id) for node_id in grid.get_node_ids()])
    assert len(grid.pull_messages(identities[:1])) == 1
    assert len(grid.pull_messages(identities)) == 2
    assert grid.pull_messages(identities) == []


def test_each_task_sees_a_fresh_context() -> None:
    def leave(message: Message, context: Context) -> Message:
        assert "left" not in context.state
        context.state["left"] = ConfigRecord({"behind": 1})
        return double(message, context)

    grid = LocalGrid(leave, SITES)
    for _ in range(2):
        (reply,) = grid.send_and_receive([make_message(grid.get_node_ids()[0])])
        assert not reply.has_error()


def test_a_fault_takes_the_place_of_a_task() -> None:
    grid = LocalGrid(double, SITES)
    lost = grid.get_node_ids()[1]
    gone = Error(ErrorCode.NODE_UNAVAILABLE, "gone")
    grid = LocalGrid(double, SITES, fault=lambda message: gone if message.metadata.dst_node_id == lost else None)
    replies = grid.send_and_receive([make_message(node_id) for node_id in grid.get_node_ids()])
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.NODE_UNAVAILABLE


def test_the_server_apps_own_exception_comes_through() -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        raise LookupError("too few sites")

    with pytest.raises(LookupError):
        run_local(server_app, double, SITES)


def test_a_site_task_costs_at_most_two_milliseconds() -> None:
    grid = LocalGrid(double, SITES)
    seconds = []
    for value in range(100):
        messages = [make_message(node_id, value) for node_id in grid.get_node_ids()]
        before = time.thread_time()  # of this thread alone: other work on the machine does not count
        grid.send_and_receive(messages)
        seconds.append((time.thread_time() - before) / len(messages))
    assert statistics.median(seconds) <= 0.002


def test_flower_keeps_what_the_grid_relies_on() -> None:
    assert set(Grid.__abstractmethods__) == {
        "create_message",
        "get_node_ids",
        "pull_messages",
        "push_messages",
        "run",
        "send_and_receive",
        "set_run",
    }
    assert Run.create_empty(7).run_id == 7
    grid = LocalGrid(double, SITES)
    message = make_message(grid.get_node_ids()[0])
    assert message.metadata.message_id == ""
    message.metadata.__dict__["_message_id"] = "identity"
    assert message.metadata.message_id == "identity"
