"""`fedtwin client review|approve|refuse`: what a hospital is asked, in words, and its own decision about it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtwin_shared.errors import ConfigurationError

if TYPE_CHECKING:
    from fedtwin_client.approval import Request

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]
Study = Annotated[Path, typer.Argument(metavar="STUDY", help="the signed study, study.signed.json")]
Again = Annotated[bool, typer.Option("--despite-refusal", help="think again about a study that was refused here")]


def review(directory: Directory, study: Study, again: Again = False) -> None:
    """Verify a signed study and show what it asks of this hospital's patients. Decides nothing."""
    from fedtwin_client.approval import examine_study
    from fedtwin_client.config import read_directory

    _show(examine_study(read_directory(directory), study, despite_refusal=again))


def approve(
    directory: Directory,
    study: Study,
    yes: Annotated[bool, typer.Option("--yes", help="approve without being asked")] = False,
    again: Again = False,
) -> None:
    """Verify a signed study, show what it asks of this hospital's patients, and approve it."""
    from fedtwin_client.approval import ApprovalError, approve_study, examine_study
    from fedtwin_client.config import read_directory
    from fedtwin_client.hospital_ledger import note_refusal
    from fedtwin_client.studies import COUNTERSIGNED_FILE
    from fedtwin_shared.round import RefusalCode

    hospital = read_directory(directory)
    by_person = not yes and sys.stdin.isatty()
    if hospital.config.policy.human_approval and not by_person:
        raise ConfigurationError(
            file=hospital.config_file, field="policy.human_approval", expected="a person at a terminal", found="none"
        )
    try:
        request = examine_study(hospital, study, despite_refusal=again)
    except ApprovalError as err:
        unattested = err.field == "cohort"
        code = RefusalCode.COHORT_NOT_ATTESTED if unattested else RefusalCode.POLICY
        note_refusal(hospital, study.read_bytes(), code)
        raise
    _show(request)
    if not (yes or typer.confirm("Approve this study?")):
        typer.echo("not approved")
        raise typer.Exit(1)
    approve_study(hospital, request, by="person" if by_person else "command")
    folder = hospital.studies / request.signed.study.digest
    typer.echo(f"approved; to withdraw it: fedtwin client refuse {directory} {study}, or remove {folder}")
    typer.echo(f"with this hospital's signature, for the coordinator: {folder / COUNTERSIGNED_FILE}")


def refuse(
    directory: Directory,
    study: Study,
    yes: Annotated[bool, typer.Option("--yes", help="refuse without being asked")] = False,
) -> None:
    """Refuse a study, or withdraw from it: the signed refusal is for the coordinator, and is remembered here."""
    from fedtwin_client.approval import refuse_study
    from fedtwin_client.config import read_directory

    hospital = read_directory(directory)
    if not (yes or typer.confirm("Refuse this study?")):
        typer.echo("not refused")
        raise typer.Exit(1)
    typer.echo(f"refused; the signed refusal, for the coordinator: {refuse_study(hospital, study)}")


def _show(request: Request) -> None:
    from fedtwin_client.review import lay_out

    rows = list(request.words)
    if request.missing:
        rows.append(("files lack", ", ".join(request.missing)))
    for line in lay_out(rows, width=shutil.get_terminal_size().columns):
        typer.echo(line)
