"""`fedtwin client release`: fetch and verify the model that a study released."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def release(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")],
    study: Annotated[str, typer.Argument(help="name of a study that this hospital approved")],
) -> None:
    """Fetch the model that a study released, verify it against what this hospital approved, and keep it."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.released_model import fetch_over_https, take_release

    hospital = read_directory(directory)
    fetch = fetch_over_https(hospital.config.coordinator.superlink, hospital.ca_file)
    kept = take_release(hospital, study, fetch=fetch)
    typer.echo(kept.release.guarantee.words)
    typer.echo(f"{kept.file}: verified; weights {kept.weights}")
