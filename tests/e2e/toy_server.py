"""A ServerApp that has nothing to do with patients: sends numbers, waits for replies, writes down how long it took."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()
POLL_SECONDS = float(os.environ.get("TOY_POLL_SECONDS", "0.05"))
ROUND_SECONDS = 120.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`rounds` rounds over `nodes` nodes; appends one JSON line per round to the file in TOY_RESULTS."""
    rounds, nodes = int(str(context.run_config["rounds"])), int(str(context.run_config["nodes"]))
    results, first = Path(os.environ["TOY_RESULTS"]), int(str(context.run_config["first"]))
    for number in range(first, first + rounds):
        while len(node_ids := list(grid.get_node_ids())) < nodes:
            time.sleep(0.2)
        started = time.monotonic()
        replies = exchange(grid, [toy_message(node_id, number) for node_id in node_ids])
        line = {
            "number": number,
            "seconds": time.monotonic() - started,
            "replies": [describe(reply) for reply in replies],
        }
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")


def toy_message(node_id: int, number: int) -> Message:
    payload = bytes(range(256)) * int(os.environ.get("TOY_BLOCKS", "8"))
    content = RecordDict({"toy": ConfigRecord({"number": number, "payload": payload})})
    return Message(content, dst_node_id=node_id, message_type="query", group_id=str(number))


def exchange(grid: Grid, messages: list[Message]) -> list[Message]:
    """Flower's own send_and_receive sleeps three seconds between polls; this is the same with the public API."""
    waiting, deadline = set(grid.push_messages(messages)), time.monotonic() + ROUND_SECONDS
    replies: list[Message] = []
    while waiting and time.monotonic() < deadline:
        got = list(grid.pull_messages(waiting))
        replies += got
        waiting -= {reply.metadata.reply_to_message_id for reply in got}
        if waiting:
            time.sleep(POLL_SECONDS)
    return replies


def describe(reply: Message) -> dict[str, object]:
    if reply.has_error():
        return {"error": reply.error.code, "reason": reply.error.reason}
    record = reply.content["toy"]
    assert isinstance(record, ConfigRecord)
    return {key: value for key, value in record.items() if not isinstance(value, bytes)}
