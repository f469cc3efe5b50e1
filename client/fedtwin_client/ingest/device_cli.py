"""`fedtwin client device`: which devices and feeds may speak to this node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedtwin_client.ingest.device import State

app = typer.Typer(help="Devices and feeds that may speak to this node.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]
Name = Annotated[str, typer.Argument(metavar="ID", help="the device's id")]


@app.command()
def add(
    directory: Directory,
    name: Name,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="its certificate, PEM")] = None,
    issue: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="make its key and certificate there, to be put on the device")
    ] = None,
    patient: Annotated[list[str] | None, typer.Option(help="whom it may speak for; repeatable")] = None,
    every_patient: Annotated[bool, typer.Option("--every-patient", help="a feed of the whole hospital")] = False,
    signal: Annotated[list[str] | None, typer.Option(help="what it may report; repeatable; all without it")] = None,
    rate: Annotated[float, typer.Option(help="readings a second")] = 1000.0,
    burst: Annotated[int, typer.Option(help="readings at once")] = 10_000,
    oldest: Annotated[int, typer.Option(help="seconds that a reading may lie back")] = 31 * 86_400,
    clock: Annotated[int, typer.Option(help="milliseconds to add to its times")] = 0,
    zone: Annotated[str, typer.Option(help="time zone of an HL7 feed that names none")] = "",
) -> None:
    """Register a device by its certificate; without one a key is made and printed, once."""
    import secrets
    from datetime import UTC, datetime

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.device import Device, identity_of
    from fedtwin_client.ingest.installation import issue_device, remember_certificate
    from fedtwin_client.ingest.registry import (
        FILE,
        add_device,
        is_name,
        read_certificate,
        read_registry,
        write_registry,
    )
    from fedtwin_shared.errors import ConfigurationError

    if bool(patient) == every_patient:
        raise ConfigurationError(field="patient", expected="--patient or --every-patient", found="both or neither")
    if certificate is not None and issue is not None:
        raise ConfigurationError(field="issue", expected="--certificate or --issue", found="both")
    if not is_name(name):
        raise ConfigurationError(field="id", expected="letters, digits, hyphens, dots, 64 at most", found=repr(name))
    hospital = read_directory(directory)
    path = hospital.node / FILE
    if name in read_registry(path).devices:
        raise ConfigurationError(file=path, field=name, expected="an id that is not taken", found="a device")
    key = secrets.token_urlsafe(32)
    if issue is not None:
        secret = issue_device(hospital, name, issue, now=datetime.now(UTC))
    elif certificate is not None:
        secret = read_certificate(certificate)
        remember_certificate(hospital, name, certificate)
    else:
        secret = key.encode()
    device = Device(
        id=name,
        identity=identity_of(secret),
        patients=None if every_patient else frozenset(patient or ()),
        signals=frozenset(signal) if signal else None,
        rate=rate,
        burst=burst,
        oldest=oldest,
        clock=clock,
        zone=zone,
    )
    write_registry(path, add_device(read_registry(path), device, file=path))
    shown = "registered" if certificate or issue else f"registered; its key, shown this once: {key}"
    typer.echo(f"{name}: {shown}")


@app.command()
def renew(
    directory: Directory,
    name: Name,
    issue: Annotated[Path, typer.Option(metavar="FOLDER", help="make its key and certificate there")],
) -> None:
    """Give a device a new key and certificate; the one that it has is worth nothing from now on."""
    from datetime import UTC, datetime

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.device import identity_of
    from fedtwin_client.ingest.installation import issue_device, list_revoked
    from fedtwin_client.ingest.registry import FILE, read_registry, set_identity, write_registry

    hospital = read_directory(directory)
    path = hospital.node / FILE
    set_identity(read_registry(path), name, identity_of(name.encode()), file=path)  # that it may be, before any file is
    identity = identity_of(issue_device(hospital, name, issue, now=datetime.now(UTC)))
    write_registry(path, set_identity(read_registry(path), name, identity, file=path))
    list_revoked(hospital, now=datetime.now(UTC))
    typer.echo(f"{name}: renewed; put {issue} on the device, and tell the broker to read its list again (SIGHUP)")


@app.command(name="list")
def show(directory: Directory) -> None:
    """List devices, what each may speak for, and its state; patients are counted, not named."""
    from rich.console import Console
    from rich.table import Table

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.registry import FILE, read_registry

    table = Table(title="devices")
    for heading in ("device", "state", "patients", "signals", "rate", "clock", "identity"):
        table.add_column(heading)
    for device in read_registry(read_directory(directory).node / FILE).devices.values():
        patients = "all" if device.patients is None else str(len(device.patients))
        signals = "all" if device.signals is None else ", ".join(sorted(device.signals))
        rate, clock = f"{device.rate:g}/s", f"{device.clock:+d} ms"
        table.add_row(device.id, device.state, patients, signals, rate, clock, device.identity[:16])
    Console().print(table)


@app.command()
def revoke(directory: Directory, name: Name) -> None:
    """Take a device's word away for good: the gateway refuses it from the next message on."""
    from datetime import UTC, datetime

    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.installation import list_revoked, tls_of

    _change(directory, name, "revoked")
    hospital = read_directory(directory)
    if list_revoked(hospital, now=datetime.now(UTC)):
        typer.echo(f"{tls_of(hospital).revoked}: written; a broker reads it when it is told to (SIGHUP)")


@app.command()
def quarantine(
    directory: Directory,
    name: Name,
    lift: Annotated[bool, typer.Option("--lift", help="believe it again")] = False,
) -> None:
    """Set everything aside that a device sends, until it is lifted."""
    _change(directory, name, "active" if lift else "quarantined")


def _change(directory: Path, name: str, state: State) -> None:
    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.registry import FILE, read_registry, set_state, write_registry

    path = read_directory(directory).node / FILE
    write_registry(path, set_state(read_registry(path), name, state, file=path))
    typer.echo(f"{name}: {state}")
