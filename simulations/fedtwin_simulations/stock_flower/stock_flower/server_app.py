"""Flower's own FedAvg, writing down when each round ended."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `rounds` rounds over `nodes` nodes; one time a line goes to the file `times`."""
    config = context.run_config
    nodes, times = int(str(config["nodes"])), Path(str(config["times"]))

    def note(number: int, arrays: ArrayRecord) -> MetricRecord:
        with times.open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()}\n")
        return MetricRecord({})

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes, min_evaluate_nodes=0)
    model = ArrayRecord({"weight": Array(np.zeros(int(str(config["numbers"])), dtype=np.float32))})
    strategy.start(grid, model, num_rounds=int(str(config["rounds"])), evaluate_fn=note)
