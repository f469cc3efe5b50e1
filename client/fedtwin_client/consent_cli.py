"""`fedtwin client consent`: what patients agreed to, from the hospital's own command line. No id is ever printed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedtwin_client.store_cli import read_ids
from fedtwin_shared.errors import ConfigurationError

if TYPE_CHECKING:
    from fedtwin_client.consent_store import ConsentStore

app = typer.Typer(help="What patients agreed to, and what came of it.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]
Patient = Annotated[str, typer.Option(help="a patient's id; a file keeps it out of the shell's history")]
IdFile = Annotated[Path | None, typer.Option("--file", metavar="FILE", help="patients' ids, one a line")]


@app.callback()
def describe() -> None:
    """What patients agreed to, and what came of it."""


@app.command(name="import")
def import_(
    directory: Directory,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="FHIR JSON, or NDJSON (*.ndjson)")],
) -> None:
    """Keep the Consent resources of FHIR files (R4, R4B, R5), in effect from the next round on."""
    from fedtwin_client.ingest.fhir import read_message, read_ndjson
    from fedtwin_client.ingest.readings import Draft
    from fedtwin_client.ingest.records import ConsentRecord

    store, kept, other = _open(directory), 0, 0
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as err:
            raise ConfigurationError(file=file, expected="a FHIR file", found=err.strerror or "no file") from err
        document = (read_ndjson if file.suffix == ".ndjson" else read_message)(content, Draft())
        if document.refused:
            raise ConfigurationError(file=file, expected="FHIR JSON", found="something else")
        consents = [record for record in document.records if isinstance(record, ConsentRecord)]
        kept += store.take(consents)
        other += document.rows + len(document.records) - len(consents)
    typer.echo(f"kept: {kept} consents, in effect from the next round on; left aside: {other} other entries")


@app.command(name="list")
def list_(directory: Directory, patient: Patient = "", file: IdFile = None) -> None:
    """Show how many patients said anything; with a patient, what this one said, and which releases it may be in."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.consent import is_admitted

    store, rule, now = _open(directory), read_directory(directory).config.policy.consent, _now()
    if not (patient or file):
        said, admitted = store.count(judge=lambda decisions: is_admitted(decisions, rule, at=now))
        typer.echo(f"rule of the policy: {rule}; patients who said anything: {said}; of these in cohorts: {admitted}")
        return
    for one in read_ids(patient, file):
        decisions = store.decisions(one)
        typer.echo(f"in cohorts from the next round on: {'yes' if is_admitted(decisions, rule, at=now) else 'no'}")
        for decision in decisions:
            source, since, until = decision.source.partition(" ")[0], _day(decision.since), _day(decision.until)
            typer.echo(f"  {source}: {decision.outcome}, from {since} until {until}")
        for release in store.releases(one):
            at = datetime.fromtimestamp(release.time, UTC).isoformat(timespec="minutes")
            typer.echo(f"  {at}: may be in study {release.study[:12]}, round {release.round}, {release.task}")


@app.command()
def withdraw(
    directory: Directory,
    patient: Patient = "",
    file: IdFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="withdraw without being asked")] = False,
) -> None:
    """Leave patients out of every study from its next round on. What it cannot undo: `consent statement`."""
    _enter(directory, patient, file, outcome="deny", words="withdrawn", yes=yes)


@app.command()
def renew(
    directory: Directory,
    patient: Patient = "",
    file: IdFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="renew without being asked")] = False,
) -> None:
    """Take patients' withdrawal back, or enter that they agreed. A refusal by another source still outweighs it."""
    _enter(directory, patient, file, outcome="permit", words="renewed", yes=yes)


@app.command()
def statement() -> None:
    """Say plainly what a withdrawal does, and what it cannot undo."""
    from fedtwin_client.consent import STATEMENT

    typer.echo(STATEMENT.rstrip())


def _enter(
    directory: Path, patient: str, file: Path | None, *, outcome: Literal["permit", "deny"], words: str, yes: bool
) -> None:
    from fedtwin_client.consent import OWN, Decision

    store, ids = _open(directory), read_ids(patient, file)
    if not (yes or typer.confirm(f"For {len(ids)} patient(s)?")):
        typer.echo("nothing was changed")
        raise typer.Exit(1)
    # Without a time: a clock that was set back would let the withdrawal wait.
    kept = store.add((one, Decision(source=OWN, outcome=outcome)) for one in ids)
    typer.echo(f"{words}: {kept}, in effect from the next round of every study on")


def _open(directory: Path) -> ConsentStore:
    from fedtwin_client.config import read_directory
    from fedtwin_client.consent_store import ConsentStore

    return ConsentStore(read_directory(directory).consent)


def _now() -> int:
    return int(time.time() * 1000)


def _day(time: int | None) -> str:
    return "always" if time is None else datetime.fromtimestamp(time / 1000, UTC).date().isoformat()
