"""`fedtwin client begin-ledger`, `checkpoint` and `witness`: the hospital's privacy ledger, and who sees it grow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="the hospital's own directory")]


def begin_ledger(
    directory: Directory,
    epsilon: Annotated[str, typer.Option(help="most that a patient may ever spend at this hospital, in all studies")],
    delta: Annotated[str, typer.Option(help="δ of that claim, for example 0.000001")],
) -> None:
    """Begin the hospital's privacy ledger, before anything is spent; the node uses it from its next start on."""
    from fedtwin_client import hospital_ledger
    from fedtwin_client.config import read_directory
    from fedtwin_client.gate import open_gate
    from fedtwin_shared.ledger.mechanism import parse_decimal

    hospital = read_directory(directory)
    claimed = parse_decimal(epsilon, field="--epsilon"), parse_decimal(delta, field="--delta")
    state = hospital_ledger.begin_ledger(hospital, open_gate(hospital), epsilon=claimed[0], delta=claimed[1])
    typer.echo(f"{hospital.ledger}: begun; ε {epsilon} at δ {delta} for life, filter at order {state.in_force.order}")
    typer.echo(f"witnesses and auditors pin: {hospital_ledger.ledger_key(hospital)}")
    typer.echo(f"the witnesses that this hospital trusts belong into {hospital.root / 'witnesses.toml'}")


def checkpoint(directory: Directory) -> None:
    """Have the witnesses cosign the ledger as it is now, while the node does not run: what an auditor then gets."""
    from fedtwin_client.config import read_directory
    from fedtwin_client.hospital_ledger import checkpoint_ledger
    from fedtwin_shared.errors import ConfigurationError
    from fedtwin_shared.ledger.witnesses import WITNESSES

    hospital = read_directory(directory)
    found = checkpoint_ledger(hospital)
    if found is None:
        raise ConfigurationError(file=hospital.root / WITNESSES, expected="witnesses", found="none")
    typer.echo(f"{found.origin}: {found.size} entries cosigned, root {found.root.hex()}")


def witness(
    directory: Annotated[Path, typer.Argument(help="the witness's directory, with witness.toml")],
    new: Annotated[bool, typer.Option("--new", help="make its key and memory, show its vkey and end")] = False,
) -> None:
    """Cosign other hospitals' ledgers that only grow, in the foreground until SIGTERM or SIGINT."""
    from fedtwin_shared.ledger.witness_service import run_witness
    from fedtwin_shared.supervision import end_with_supervisor

    if not new:
        end_with_supervisor()
    run_witness(directory, new=new, say=typer.echo)
