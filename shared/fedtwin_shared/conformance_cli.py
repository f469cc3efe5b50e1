"""`fedtwin audit conformance`: a site's signed conformance result, judged anew with the base install."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedtwin_shared.conformance_result import ConformanceResult, Verdict, judge, verify_conformance
from fedtwin_shared.errors import ConfigurationError

EXIT_DOES_NOT_HOLD = 1


def conformance(
    file: Annotated[Path, typer.Argument(help="a site's signed result, conformance/*.signed.json")],
    key: Annotated[str, typer.Option(help="the site's public signing key, obtained by another channel: ed25519:…")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Verify what a site measured of its own training step and judge it anew; exit with 1 if it is not as claimed."""
    try:
        envelope = file.read_bytes()
    except OSError as err:
        raise ConfigurationError(file=file, expected="a readable file", found=err.strerror or "none") from err
    result = verify_conformance(envelope, key=key, file=file)
    verdict = judge(result)
    statement = describe_conformance(result, verdict)
    if as_json:
        typer.echo(json.dumps(statement, indent=2, sort_keys=True))
    else:
        table = Table(title=f"{file.name}: signature valid", show_header=False)
        for name, value in statement.items():
            table.add_row(name, value if isinstance(value, str) else json.dumps(value))
        Console().print(table)
    if not verdict.passed:
        raise typer.Exit(EXIT_DOES_NOT_HOLD)


def describe_conformance(result: ConformanceResult, verdict: Verdict) -> dict[str, object]:
    """Return what was claimed, measured and concluded."""
    return {
        "site": result.site,
        "day": result.day,
        "engine": result.engine,
        "versions": result.versions,
        "claim": {
            "sampling_rate": result.claim.sampling_rate,
            "noise_multiplier": result.claim.noise_multiplier,
            "steps": result.claim.steps,
            "epsilon": verdict.epsilon,
            "delta": result.claim.delta,
        },
        "as_claimed": verdict.passed,
        "against_it": list(verdict.failures),
        "epsilon_lower_bound": verdict.lower_bound,
        "epsilon_of_a_gaussian": verdict.gaussian_bound,
        "noise_variance": result.noise.variance,
        "noise_lag": result.noise.lag,
        "unseen": "batches of fixed size accounted as Poisson sampling; noise that somebody knows",
    }
