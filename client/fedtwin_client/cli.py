"""`fedtwin client`: what a hospital's own people type. It parses and calls; every error is one line and exit code 2."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from fedtwin_client import (
    conformance_cli,
    consent_cli,
    demo_cli,
    gateway_cli,
    ledger_cli,
    policy_cli,
    release_cli,
    store_cli,
    study_cli,
)
from fedtwin_client.ingest import device_cli
from fedtwin_client.monitoring import watch_cli

if TYPE_CHECKING:
    from fedtwin_client.hospital_ledger import Lifetime
    from fedtwin_shared.ledger.block_report import PartPrice

app = typer.Typer(help="Hospital IT: run a hospital's node.", no_args_is_help=True, add_completion=False)
app.add_typer(store_cli.store, name="store")
app.add_typer(policy_cli.app, name="policy")
app.add_typer(consent_cli.app, name="consent")
app.add_typer(device_cli.app, name="device")
app.command()(store_cli.forget)
app.command()(store_cli.export)
app.command()(gateway_cli.gateway)
app.command()(gateway_cli.gateway_init)
app.command()(gateway_cli.gateway_renew)
app.command()(watch_cli.watch)
app.command()(demo_cli.demo)
app.command()(study_cli.review)
app.command()(study_cli.approve)
app.command()(study_cli.refuse)
app.command()(conformance_cli.conformance)
app.command()(release_cli.release)
app.command()(ledger_cli.begin_ledger)
app.command()(ledger_cli.checkpoint)
app.command()(ledger_cli.witness)

POLICY_PERIOD: Final = timedelta(days=2 * 365)  # of a new hospital's policy; then its people look at it again

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]


@app.callback()
def client() -> None:
    """Hospital IT: run a hospital's node."""


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="a new directory")],
    name: Annotated[str, typer.Option(help="this hospital's name in the roster")],
    superlink: Annotated[str, typer.Option(metavar="HOST:PORT", help="the coordinator's front")],
    coordinator_key: Annotated[str, typer.Option(help="the coordinator's public key, by another channel: ed25519:…")],
    ca: Annotated[Path, typer.Option(metavar="FILE", help="certificate of the coordinator's authority, PEM")],
    data: Annotated[str, typer.Option(metavar="FOLDER", help="the hospital's own files")] = "data",
    bundle: Annotated[list[str] | None, typer.Option(metavar="SHA256", help="a bundle to answer; repeatable")] = None,
    maximum_epsilon: Annotated[float, typer.Option(help="most that one study may cost a patient")] = 3.0,
    maximum_epsilon_year: Annotated[
        float | None, typer.Option(help="most that all studies may cost a patient in 365 days; twice that of one")
    ] = None,
    maximum_epsilon_lifetime: Annotated[
        float | None, typer.Option(help="most that they may ever cost; three times that of one")
    ] = None,
    maximum_delta: Annotated[float, typer.Option(help="largest δ of a study")] = 1e-4,
    minimum_patients: Annotated[int, typer.Option(help="fewest patients behind a study")] = 20,
    runtime_port: Annotated[int, typer.Option(help="loopback port between the node's own processes")] = 9094,
    health_port: Annotated[int, typer.Option(help="loopback port of GET /health")] = 8181,
) -> None:
    """Make the directory: keys, configuration, systemd unit and compose file. Prints the public keys."""
    from fedtwin_client.directory import Answers, create_directory

    answers = Answers(
        name=name,
        superlink=superlink,
        coordinator_key=coordinator_key,
        data=data,
        valid_until=datetime.now(UTC).date() + POLICY_PERIOD,
        maximum_epsilon=maximum_epsilon,
        maximum_epsilon_year=maximum_epsilon_year,
        maximum_epsilon_lifetime=maximum_epsilon_lifetime,
        maximum_delta=maximum_delta,
        minimum_patients=minimum_patients,
        allowed_bundles=tuple(bundle or ()),
        runtime_port=runtime_port,
        health_port=health_port,
    )
    keys = create_directory(directory, answers, authority=ca)
    typer.echo(f"{directory}: made. Send these two public keys to the coordinator by another channel than the network:")
    typer.echo(f"signing key (for the roster): {keys.signing}")
    typer.echo(f"node key (for the link): {keys.node}")


@app.command()
def check(directory: Directory) -> None:
    """Read everything that a run would read, and say what is wrong: configuration, keys, data files, studies."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.errors import DataError
    from fedtwin_client.gate import open_gate
    from fedtwin_client.health import is_reachable
    from fedtwin_client.ledger_mark import examine_ledger
    from fedtwin_client.node import check_files
    from fedtwin_client.policy_signature import open_policy
    from fedtwin_client.reader import read_hospital
    from fedtwin_client.studies import open_studies

    hospital = read_directory(directory)
    check_files(hospital)
    open_policy(hospital, open_gate(hospital)).verify()
    standing = examine_ledger(hospital)
    records = read_hospital(hospital.data, quarantine=hospital.quarantine)
    studies = open_studies(hospital, open_gate(hospital))
    console = Console()
    table = Table(title="data files (for this hospital's eyes only)")
    for heading in ("file", "what", "accepted", "quarantined", "why"):
        table.add_column(heading, justify="right" if heading in {"accepted", "quarantined"} else "left")
    for tally in records.tallies:
        why = ", ".join(f"{reason} {count}" for reason, count in tally.quarantined.items())
        table.add_row(tally.file, tally.what, str(tally.accepted), str(tally.total - tally.accepted), why)
    console.print(table)
    console.print(f"rows that were not accepted: {hospital.quarantine}")
    for digest in studies.digests():
        approved = studies.find(digest)
        if approved is not None:
            state = "approved" if approved.attested else "not attested: approve it again"
            console.print(f"study {approved.study.name} version {approved.study.version}: {state}")
    for warning in standing.warnings:
        console.print(f"warning: {warning}")
    superlink = hospital.config.coordinator.superlink
    console.print(f"coordinator {superlink}: {'can' if is_reachable(superlink) else 'cannot'} be reached from here")
    for tally in records.tallies:
        if tally.lacking:
            columns = ", ".join(tally.lacking)
            raise DataError(
                file=hospital.data / tally.file, field=columns, expected="a column", found="none of that name"
            )
    if not any(tally.file.startswith("observations") for tally in records.tallies):
        console.print("no observations file: only studies of facts known at admission are possible")
    console.print(f"{hospital.config.name}: configuration, keys and data can be read")


@app.command()
def run(directory: Directory) -> None:
    """Run the node in the foreground until SIGTERM. Data files that cannot be read are fatal before anything starts."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.ledger_mark import examine_ledger
    from fedtwin_client.node import run_node
    from fedtwin_client.studies import approved_digests
    from fedtwin_shared.supervision import end_with_supervisor

    end_with_supervisor()
    hospital = read_directory(directory)
    if approved_digests(hospital.studies):
        from fedtwin_client.reader import read_hospital

        read_hospital(hospital.data, quarantine=hospital.quarantine)
    for warning in examine_ledger(hospital).warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{hospital.config.name}: runs until it is told to stop; health: port {hospital.config.ports.health}")
    run_node(hospital)


@app.command()
def status(
    directory: Directory,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Show what each study has spent of its plan, and what the gateway has counted; also while they run."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.gate import open_gate
    from fedtwin_client.hospital_ledger import describe_lifetime
    from fedtwin_client.ingest.state import read_state
    from fedtwin_client.ledger_mark import examine_ledger
    from fedtwin_client.spending import describe_spending
    from fedtwin_shared.privacy import CAVEAT

    hospital = read_directory(directory)
    rows = describe_spending(hospital)
    lifetime = describe_lifetime(hospital, open_gate(hospital))
    for warning in examine_ledger(hospital).warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        shown: dict[str, object] = {"site": hospital.config.name, "caveat": CAVEAT}
        shown["studies"] = [asdict(row) for row in rows]
        if lifetime is not None:
            shown["lifetime"] = asdict(lifetime)
        if (gateway := read_state(hospital)) is not None:
            shown["gateway"] = gateway
        typer.echo(json.dumps(shown, indent=2, default=str))
        return
    table = Table(title=f"{hospital.config.name}: spent ({CAVEAT})")
    for heading in ("study", "state", "steps", "histograms", "ε so far", "of the plan"):
        table.add_column(heading, justify="left" if heading in {"study", "state"} else "right")
    for row in rows:
        name = f"{row.name} {row.version}" if row.name else row.digest[:12]
        of_steps, of_releases = _of(row.steps, row.planned_steps), _of(row.releases, row.planned_releases)
        table.add_row(name, row.state, of_steps, of_releases, _number(row.epsilon), _number(row.price))
    Console().print(table)
    if lifetime is not None:
        _show_lifetime(lifetime)
    gateway_cli.show_gateway(Console(), read_state(hospital))


def _show_lifetime(lifetime: Lifetime) -> None:
    """Show what each block of patients has spent, and the share of a lifetime that each approved study asks for."""
    table = Table(title=f"of a lifetime of ε {lifetime.epsilon} at δ {lifetime.delta}")
    for heading in ("patients", "ε so far", "left", *(study[:12] for study in lifetime.prices)):
        table.add_column(heading, justify="left" if heading == "patients" else "right")
    for block in lifetime.blocks:
        asked = [[price for price in prices if price.block == block.block] for prices in lifetime.prices.values()]
        table.add_row(block.block, f"{block.odometer:.3f}", f"{block.left:.1%}", *map(_asked, asked))
    Console().print(table)


def _asked(prices: list[PartPrice]) -> str:
    words = (
        f"{price.part} {'∞' if price.share is None else f'{price.share:.1%}'}{'' if price.affordable else ' refused'}"
        for price in prices
    )
    return ", ".join(words)


def _of(part: int, whole: int | None) -> str:
    return f"{part} of {whole}" if whole is not None else str(part)


def _number(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else "unknown"
