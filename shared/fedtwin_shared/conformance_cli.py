"""`fedtwin audit conformance`: a site's signed conformance result, judged anew with the base install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedtwin_shared.conformance_result import ConformanceResult, Verdict, judge, verify_conformance
from fedtwin_shared.presentation import EXIT_DOES_NOT_HOLD, read_evidence, show_statement


def conformance(
    file: Annotated[Path, typer.Argument(help="a site's signed result, conformance/*.signed.json")],
    key: Annotated[str, typer.Option(help="the site's public signing key, obtained by another channel: ed25519:…")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Verify what a site measured of its own training step and judge it anew; exit with 1 if it is not as claimed."""
    result = verify_conformance(read_evidence(file), key=key, file=file)
    verdict = judge(result)
    show_statement(describe_conformance(result, verdict), title=f"{file.name}: signature valid", as_json=as_json)
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
