"""`fedtwin client store|forget|export`: the hospital's own store, from its own command line. No id is ever printed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from fedtwin_shared.errors import ConfigurationError

EXIT_DAMAGED = 1

store = typer.Typer(help="The store of observations.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]
Patient = Annotated[str, typer.Option(help="a patient's id; a file keeps it out of the shell's history")]
IdFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="patients' ids, one a line")]


@store.callback()
def describe() -> None:
    """The store of observations."""


@store.command()
def check(directory: Directory) -> None:
    """Decrypt every block, set aside what is damaged, and say what was found; exit with 1 when something is missing."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.store.opening import open_hospital_store

    with open_hospital_store(read_directory(directory)) as opened:
        report, patients = opened.report, len(opened.patients())
    typer.echo(f"whole: {report.rows} observations of {patients} patients in {report.blocks} blocks")
    for repair in report.repairs:
        typer.echo(f"repaired: {repair}")
    for damage in report.damaged:
        start = datetime.fromtimestamp(damage.start / 1000, UTC).isoformat() if damage.signal else "unknown"
        typer.echo(f"damaged: {damage.rows} observations, signal {damage.signal or 'several'}, four hours from {start}")
    if report.erased:
        typer.echo(f"erasures finished: {report.erased}")
    if not report.whole:
        raise typer.Exit(EXIT_DAMAGED)


@store.command()
def drop(
    directory: Directory,
    older_than: Annotated[int, typer.Option(metavar="DAYS", min=1, help="age that observations are kept to")],
) -> None:
    """Delete the observations that are older, for good: whole blocks of four hours, so none that is younger."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.store.opening import open_hospital_store

    limit = datetime.now(UTC) - timedelta(days=older_than)
    with open_hospital_store(read_directory(directory), check=False) as opened:
        count = opened.drop_before(int(limit.timestamp() * 1000))
    typer.echo(f"dropped: {count} observations from before {limit.isoformat(timespec='minutes')}")


def forget(
    directory: Directory,
    patient: Patient = "",
    file: IdFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="forget without being asked")] = False,
) -> None:
    """Destroy patients' keys and everything the node holds of them, for ever. New rows of them are refused."""
    from fedtwin_client import forgetting
    from fedtwin_client.config import read_directory

    hospital, ids = read_directory(directory), read_ids(patient, file)
    if not (yes or typer.confirm(f"Forget {len(ids)} patient(s) for ever?")):
        typer.echo("nothing was forgotten")
        raise typer.Exit(1)
    known = forgetting.forget(hospital, ids)
    typer.echo(f"forgotten: {len(ids)}; of these the store had a key for {known}")
    typer.echo(f"replace any spare copy of the site key in {hospital.store / 'keys'}: the old one opens nothing here")
    typer.echo(f"files that the hospital itself keeps in {hospital.data} are its own to delete")


def export(
    directory: Directory,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="a new file, FHIR R4 JSON")],
    patient: Patient = "",
    file: IdFile = None,
) -> None:
    """Write everything the store holds of one patient as a FHIR R4 Bundle."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.ingest.control import ask
    from fedtwin_client.store.export import export_patient
    from fedtwin_client.store.opening import open_hospital_store

    hospital, ids = read_directory(directory), read_ids(patient, file)
    if len(ids) != 1:
        raise ConfigurationError(file=file or "", field="patient", expected="one patient", found=str(len(ids)))
    count = ask(hospital.node, {"export": ids[0], "output": str(output.resolve())})
    if count is None:
        with open_hospital_store(hospital, check=False) as opened:
            count = export_patient(opened, ids[0], output, now=datetime.now(UTC))
    typer.echo(f"{output}: {count} observations")


def read_ids(patient: str, file: Path | None) -> list[str]:
    """Return the ids that were given, one way or the other."""
    if bool(patient) == (file is not None):
        raise ConfigurationError(field="patient", expected="either --patient or --file", found="both or neither")
    if file is None:
        return [patient]
    try:
        ids = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigurationError(file=file, expected="a text file of ids", found=type(err).__name__) from err
    return sorted({line for line in ids if line})
