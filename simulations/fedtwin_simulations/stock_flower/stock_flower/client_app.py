"""A site that adds one: training that takes no time."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return every number plus one."""
    received = message.content["arrays"]
    assert isinstance(received, ArrayRecord)
    arrays = ArrayRecord({name: Array(array.numpy() + 1) for name, array in received.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)
