"""`fedtwin client policy`: show the hospital's policy, and put it in force under the hospital's own signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The hospital's signed policy.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]


@app.callback()
def describe() -> None:
    """The hospital's signed policy."""


@app.command()
def show(directory: Directory) -> None:
    """Show the policy in force and its digest, which the ledger names; exit with 2 where none is in force."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.gate import open_gate
    from fedtwin_client.policy_signature import open_policy

    hospital = read_directory(directory)
    policy = open_policy(hospital, open_gate(hospital)).verify()
    for line in policy.describe():
        typer.echo(line)
    typer.echo(f"digest: {policy.digest(hospital.config.name)}")


@app.command()
def sign(
    directory: Directory, yes: Annotated[bool, typer.Option("--yes", help="sign without being asked")] = False
) -> None:
    """Show the policy of hospital.toml and sign it: from the node's next start on it is in force, and nothing else."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.gate import open_gate
    from fedtwin_client.policy_signature import sign_policy

    hospital = read_directory(directory)
    for line in hospital.config.policy.describe():
        typer.echo(line)
    if not (yes or typer.confirm("Sign this policy?")):
        typer.echo("not signed")
        raise typer.Exit(1)
    signed = sign_policy(hospital, open_gate(hospital))
    typer.echo(f"signed: {hospital.policy_signature}, digest {signed}")
    typer.echo("in force from the node's next start on; a node that runs refuses every study until then")
