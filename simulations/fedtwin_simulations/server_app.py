"""A ServerApp that does nothing but secure aggregations, and writes down when each of them ended."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedtwin_server.secagg_workflow import FlowerExchange
from fedtwin_simulations.secure_superlink import conduct, read_patience

app = ServerApp()
unused = ClientApp()  # Flower wants a name for it; sites run their own executor with their own app


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run `rounds` steps of the consortium in the folder `consortium`; one time a line goes to the file `times`."""
    config = {key: str(value) for key, value in context.run_config.items()}

    def note(right: bool) -> None:
        with Path(config["times"]).open("a", encoding="utf-8") as file:
            file.write(f"{time.monotonic() if right else 'wrong'}\n")

    folder = Path(config["consortium"])
    patience = read_patience(folder)
    exchange = FlowerExchange(grid, patience_seconds=patience, deadline_seconds=10 * patience)
    conduct(folder, exchange, rounds=int(config["rounds"]), note=note)
