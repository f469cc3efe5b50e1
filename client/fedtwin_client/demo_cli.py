"""`fedtwin client demo`: a ward of simulated devices, with kills, on this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedtwin_client.ward.demo import Outcome

EXIT_LOST = 1


def demo(
    ward: Annotated[int, typer.Option(min=4, max=400, help="simulated patients")] = 200,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="PhysioNet's set-a.parquet or a hospital's observations file")
    ] = None,
    minutes: Annotated[int, typer.Option(min=2, help="of made-up vital signs, where no folder is given")] = 60,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="in which everything becomes due")] = 20.0,
    outage: Annotated[float | None, typer.Option(min=0, max=30, help="seconds without the store")] = None,
    broker: Annotated[bool, typer.Option(help="start mosquitto, where it is installed")] = True,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="the outcome as JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable, on standard output")] = False,
) -> None:
    """Let a ward's devices send by MQTT, gRPC, HL7 and FHIR at once, kill broker, gateway and store, and count."""
    import json
    import tempfile
    import time

    from rich.console import Console

    from fedtwin_client.ward.demo import describe, run_demo
    from fedtwin_client.ward.series import make_stays, read_stays

    console, began = Console(stderr=as_json), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/dim]  {line}", highlight=False)

    stays = make_stays(ward, minutes=minutes, seed=1) if data is None else read_stays(data, patients=ward)
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        outcome = run_demo(Path(folder), stays, seconds=seconds, say=say, with_broker=broker, outage=outage)
    text = json.dumps(describe(outcome), indent=2)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        _show(console, outcome)
    if not outcome.holds:
        raise typer.Exit(EXIT_LOST)


def _show(console: object, outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    assert isinstance(console, Console)
    killed = ", ".join(f"{what} after {when:g} s" for what, when in outcome.kills)
    table = Table(title=f"what was acknowledged, and where it is; killed: {killed}")
    for heading in ("way in", "beds", "sent", "acknowledged", "in the store", "set aside there", "lost", "kept twice"):
        table.add_column(heading, justify="left" if heading == "way in" else "right")
    for tally in outcome.tallies:
        numbers = (tally.beds, tally.sent, tally.acknowledged, tally.stored, tally.aside, tally.lost, tally.repeated)
        table.add_row(tally.way, *(f"{number:,}" for number in numbers))
    console.print(table)
    erased = outcome.erasure
    console.print(
        f"one patient forgotten: {erased.exported} readings were exported before, {erased.sealed} ciphertexts were "
        f"there; afterwards, of {erased.files} files, {erased.named} name the patient, {erased.ciphertexts} hold a "
        f"ciphertext of theirs, {erased.keys} their wrapped key; the site key that wrapped it is "
        f"{'still there' if erased.old_site_key else 'gone'}; a backup of before opens for {erased.backup_others} "
        f"others and {'also' if erased.backup_opens else 'not'} for them",
        highlight=False,
    )
    verdict = "nothing that was acknowledged is lost" if outcome.holds else "SOMETHING IS LOST OR LEFT"
    console.print(f"{verdict}; {outcome.seconds:.1f} s", highlight=False)
