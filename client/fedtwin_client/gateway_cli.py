"""`fedtwin client gateway|gateway-init|gateway-renew`: the process that takes in what devices and feeds send."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from rich.console import Console

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]


def gateway(
    directory: Directory,
    board: Annotated[int, typer.Option(metavar="PORT", help="of the ward's board, on loopback; 0: none")] = 0,
) -> None:
    """Take in what devices and feeds send, apart from training, until SIGTERM; with a board, twins watch it."""
    import logging

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.serving import run_gateway
    from fedtwin_shared.supervision import end_with_supervisor

    end_with_supervisor()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    hospital = read_directory(directory)
    typer.echo(f"{hospital.config.name}: gateway, until it is told to stop; its counts: {hospital.gateway_state}")
    if not board:
        run_gateway(hospital)
        return
    import time

    from fedtwin_client.monitoring.board import WardWatch
    from fedtwin_client.monitoring.board_api import board_served, keep_token

    # Nothing of an earlier run is known to the board yet: twins begin with what arrives from now on.
    watch = WardWatch(clock=lambda: time.time_ns() // 1_000_000)
    with board_served(watch, token=keep_token(hospital.root / "board.token"), port=board):
        run_gateway(hospital, subscribers=[watch])


def gateway_init(
    directory: Directory,
    name: Annotated[list[str], typer.Option(help="host name or address that devices know it by; repeatable")],
    listen: Annotated[str, typer.Option(help="address to listen on")] = "0.0.0.0",
    mllp: Annotated[int, typer.Option(metavar="PORT", help="of HL7 v2; 0: none")] = 2575,
    fhir: Annotated[int, typer.Option(metavar="PORT", help="of FHIR; 0: none")] = 8443,
    grpc: Annotated[int, typer.Option(metavar="PORT", help="of gRPC; 0: none")] = 50061,
    broker: Annotated[str, typer.Option(metavar="HOST:PORT", help="an MQTT broker; without it none")] = "",
) -> None:
    """Make an authority for devices, the gateway's certificates, its part of hospital.toml and its unit files."""
    from datetime import UTC, datetime

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.installation import FOLDER, Doors, install_gateway

    hospital = read_directory(directory)
    doors = Doors(names=tuple(name), listen=listen, mllp=mllp, fhir=fhir, grpc=grpc, broker=broker)
    install_gateway(hospital, doors, now=datetime.now(UTC))
    typer.echo(f"{hospital.root / FOLDER}: made; register devices with `fedtwin client device add --issue FOLDER`")
    if broker:
        typer.echo(f"start the broker with: mosquitto -c {hospital.root / FOLDER / 'broker' / 'mosquitto.conf'}")


def gateway_renew(directory: Directory) -> None:
    """Make the gateway's certificates anew, a year after the last time; restart gateway and broker then."""
    from datetime import UTC, datetime

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.installation import renew_certificates, tls_of
    from fedtwin_shared.certificates import expires_at

    hospital = read_directory(directory)
    renew_certificates(hospital, now=datetime.now(UTC))
    until = expires_at(tls_of(hospital).server[0]).date().isoformat()
    typer.echo(f"certificates until {until}; restart the gateway and the broker")


def show_gateway(console: Console, state: Mapping[str, Any] | None) -> None:
    """Show what the gateway has counted; nothing where there is none."""
    if state is None:
        return
    totals = state["totals"]
    console.print(f"gateway: {'runs' if state['running'] else 'does not run'}", highlight=False)
    console.print(
        f"received {totals['received']} = accepted {totals['accepted']} + set aside {totals['set_aside']}"
        f" + known already {totals['duplicate']} + refused {totals['refused']}; records {totals['records']}",
        highlight=False,
    )
    if state["reasons"]:
        console.print(", ".join(f"{reason} {count}" for reason, count in state["reasons"].items()), highlight=False)
