"""A site with a toy app: doubles a number. Run as a process: the executor of one SuperNode."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedtwin_client.executor import TaskRecord, execute_tasks
from fedtwin_shared.supervision import stop_on_signals

SECRET = "heart rate 900"  # stands for a patient's value: it must not leave, nor be logged


app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Twice the number; a negative one is an error whose text must stay here."""
    record = message.content["toy"]
    assert isinstance(record, ConfigRecord)
    number = record["number"]
    assert isinstance(number, int)
    if number < 0:
        raise ValueError(SECRET)
    reply = ConfigRecord({"double": 2 * number, "node": context.node_id, "payload": record["payload"]})
    return Message(RecordDict({"toy": reply}), reply_to=message)


def refuse(message: Message) -> Message:
    """The site's no; a real one is signed."""
    return Message(RecordDict({"toy": ConfigRecord({"refusal": "unknown-bundle"})}), reply_to=message)


def main(runtime_address: str, allowed: str, secret_file: str, records: str) -> None:
    """Execute tasks until a signal; one line per task in the file `records`."""
    logging.basicConfig(level=logging.INFO)

    def note(record: TaskRecord) -> None:
        with Path(records).open("a") as file:
            file.write(f"{record.outcome} {record.seconds:.4f}\n")

    with stop_on_signals() as stop:
        execute_tasks(
            runtime_address,
            app,
            allowed_bundles=frozenset(allowed.split(",")),
            refuse=refuse,
            stop=stop,
            secret_file=Path(secret_file),
            on_task=note,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
