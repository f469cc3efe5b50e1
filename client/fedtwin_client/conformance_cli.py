"""`fedtwin client conformance`: the audit of the step that trains here, for the hospital's own people."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError

if TYPE_CHECKING:  # torch and all that training needs
    from fedtwin_client.config import HospitalDirectory
    from fedtwin_shared.conformance_result import Claim, ConformanceResult, Verdict
    from fedtwin_shared.study import Study

EXIT_DOES_NOT_HOLD = 1


def conformance(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIRECTORY]", help="the hospital's own directory: its approved studies")
    ] = None,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="this study only: signed, or study.toml without a DIRECTORY")
    ] = None,
    canaries: Annotated[int, typer.Option(min=100, max=10_000, help="made-up patients of one run")] = 1000,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="runs, each with other canaries")] = 6,
) -> None:
    """Show by attacking it that the training step does what studies claim. No patient is read, no budget spent.

    With a DIRECTORY, results are signed and kept in its folder conformance. Exit code 1: something speaks against it.
    """
    from fedtwin_client.conformance import Effort, audit_step, make_canary_study
    from fedtwin_client.randomness import SystemRandomness
    from fedtwin_client.training import train
    from fedtwin_client.training.local_steps import name_engine
    from fedtwin_shared.conformance_result import judge

    hospital = _read_hospital(directory)
    failed = False
    for name, claim in _claims(hospital, study):
        result = audit_step(
            claim,
            train=train,
            randomness=SystemRandomness(),
            effort=Effort(canaries=canaries, runs=runs),
            site=hospital.config.name if hospital else "unnamed",
            engine=name_engine(make_canary_study(claim, canaries=2)),
            day=dt.datetime.now(dt.UTC).date(),
        )
        verdict = judge(result)
        failed |= not verdict.passed
        Console().print(_describe(name, result, verdict))
        if hospital is not None:
            typer.echo(f"signed: {_keep(hospital, name, result)}")
    if failed:
        raise typer.Exit(EXIT_DOES_NOT_HOLD)


def _read_hospital(directory: Path | None) -> HospitalDirectory | None:
    if directory is None:
        return None
    from fedtwin_client.config import read_directory

    return read_directory(directory)


def _claims(hospital: HospitalDirectory | None, file: Path | None) -> Iterator[tuple[str, Claim]]:
    """Yield name and claim of every study that is meant; a standard one where there is none."""
    from fedtwin_client.conformance import STANDARD
    from fedtwin_client.gate import open_gate
    from fedtwin_client.studies import open_studies, read_study
    from fedtwin_shared.documents import read_toml
    from fedtwin_shared.study import Study

    if hospital is None and file is None:
        raise ConfigurationError(field="conformance", expected="DIRECTORY or --study FILE", found="neither")
    if file is not None:
        if hospital is None:
            found = read_toml(file, Study)
        else:
            found = read_study(file, coordinator=hospital.config.coordinator.public_key).study
        yield found.name, _claim(found, file)
        return
    assert hospital is not None
    studies = open_studies(hospital, open_gate(hospital))
    approved = [known.study for digest in studies.digests() if (known := studies.find(digest)) is not None]
    for one in approved:
        yield one.name, _claim(one, hospital.studies / one.digest)
    if not approved:
        yield "standard", STANDARD


def _claim(study: Study, file: Path) -> Claim:
    from fedtwin_client.conformance import claim_of

    if study.privacy.mode == "none":
        raise ConfigurationError(file=file, field="privacy.mode", expected="privacy, so a claim", found='"none"')
    return claim_of(study)


def _describe(name: str, result: ConformanceResult, verdict: Verdict) -> Table:
    claim = result.claim
    table = Table(title=f"{name}: {'as claimed' if verdict.passed else 'NOT as claimed'}", show_header=False)
    table.add_row("claim", f"rate {claim.sampling_rate:g}, noise {claim.noise_multiplier:g}, {claim.steps} steps")
    table.add_row("engine", result.engine)
    table.add_row("ε of the claim", f"{verdict.epsilon:.3f} at δ = {claim.delta:g}")
    table.add_row("ε proven by attack, at least", f"{verdict.lower_bound:.3f}")
    table.add_row("ε of a Gaussian of that power", f"{verdict.gaussian_bound:.3f}")
    table.add_row("noise variance ÷ claimed", f"{result.noise.variance:.4f}")
    table.add_row("correlation of noise with the step before", f"{result.noise.lag:.4f}")
    for failure in verdict.failures:
        table.add_row("against it", failure)
    return table


def _keep(hospital: HospitalDirectory, name: str, result: ConformanceResult) -> Path:
    """Write the signed result, replacing an older one as a whole."""
    from fedtwin_client.hospital_ledger import note_conformance
    from fedtwin_shared.conformance_result import judge, sign_conformance
    from fedtwin_shared.signing import load_signing_key

    folder = hospital.root / "conformance"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = folder / f"{name}.signed.json"
    signed = sign_conformance(result, load_signing_key(hospital.signing_key))
    replace_file(file, signed)
    note_conformance(hospital, signed, passed=judge(result).passed)
    return file
