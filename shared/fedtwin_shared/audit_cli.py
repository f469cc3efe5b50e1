"""`fedtwin audit`: what an auditor can check with the base install, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedtwin_shared import conformance_cli
from fedtwin_shared.documents import SignedStudy, verify_study
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.presentation import (
    EXIT_DOES_NOT_HOLD,
    read_evidence,
    show_failures,
    show_json,
    show_statement,
)
from fedtwin_shared.privacy import CAVEAT, accounted_delta, compute_epsilon, compute_epsilon_renyi
from fedtwin_shared.round import Task, declared_arrays

app = typer.Typer(
    help="Auditors: what a study may spend, checked without trusting anybody.",
    no_args_is_help=True,
    add_completion=False,
)

app.command()(conformance_cli.conformance)


@app.callback()
def audit() -> None:
    """Auditors: what a study may spend, checked without trusting anybody."""


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="the signed study, study.signed.json")],
    key: Annotated[str, typer.Option(help="the coordinator's public key, obtained by another channel: ed25519:…")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Verify a signed study and recompute, with two accountants, what it may cost a patient and what leaves a site."""
    signed = verify_study(read_evidence(file), coordinator=key, file=file)
    show_statement(describe_price(signed), title=f"{file.name}: signature valid", as_json=as_json)


@app.command()
def release(
    file: Annotated[Path, typer.Argument(help="the signed release, release.signed.json")],
    study: Annotated[Path, typer.Option(help="the signed study that it must be of, study.signed.json")],
    key: Annotated[str, typer.Option(help="the coordinator's public key, obtained by another channel: ed25519:…")],
    weights: Annotated[Path | None, typer.Option(help="the weights that came with it")] = None,
    current: Annotated[Path | None, typer.Option(help="the release in use, which this must not be older than")] = None,
    keys: Annotated[Path | None, typer.Option(help="pinned-keys.json: demand ledgers with cosignatures")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Verify a released model: whose it is, of which study, what it may tell about a patient, and the weights."""
    from fedtwin_shared.ledger.pins import read_pinned_keys
    from fedtwin_shared.release import describe_release, read_release, verify_release, verify_weights

    signed = verify_study(read_evidence(study), coordinator=key, file=study)
    pinned = None if keys is None else read_pinned_keys(keys)
    released = verify_release(
        read_evidence(file),
        signed=signed,
        current=None if current is None else read_release(read_evidence(current), coordinator=key, file=current),
        witnesses=() if pinned is None else pinned.witness_keys,
        required=0 if pinned is None else pinned.required,
        file=file,
    )
    if weights is not None:
        verify_weights(released, read_evidence(weights), file=weights)
    statement = released.model_dump(mode="json") if as_json else describe_release(released)
    show_statement(statement, title=f"{file.name}: signature valid", as_json=as_json)


@app.command()
def bundle(
    output: Annotated[Path, typer.Argument(help="the archive to write, audit-bundle.zip")],
    log: Annotated[list[str], typer.Option(help="a hospital's name and its ledger: north=ledger.sqlite; repeat")],
    document: Annotated[list[Path] | None, typer.Option(help="a file that entries name by digest; repeat")] = None,
) -> None:
    """Export ledgers, each as of its last checkpoint, for an auditor."""
    from fedtwin_shared.ledger.export import export_bundle

    ledgers = {name: Path(path) for name, _, path in (one.partition("=") for one in log)}
    if len(ledgers) != len(log) or not all("=" in one for one in log):
        raise ConfigurationError(field="--log", expected="name=file, each name once", found=", ".join(log))
    data = export_bundle(ledgers, document or [])
    try:
        output.write_bytes(data)
    except OSError as err:
        raise ConfigurationError(file=output, expected="a writable file", found=err.strerror or "none") from err
    typer.echo(f"{output}: {len(ledgers)} ledgers, {len(data)} bytes")


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="the archive that a hospital or the consortium exported")],
    keys: Annotated[Path, typer.Option(help="pinned-keys.json, obtained by another channel")],
    as_json: Annotated[bool, typer.Option("--json", help="machine-readable")] = False,
) -> None:
    """Recompute everything in a bundle, offline; exit with 0 if all of it holds, else with 1 and what failed."""
    from fedtwin_shared.ledger.pins import read_pinned_keys
    from fedtwin_shared.ledger.second_opinion import recompute_history
    from fedtwin_shared.ledger.statement import describe_ledger
    from fedtwin_shared.ledger.study_comparison import find_uncompared
    from fedtwin_shared.ledger.verification import VerifiedBundle, read_bundle_file, verify_bundle

    found = verify_bundle(read_bundle_file(bundle), pinned=read_pinned_keys(keys), replay=recompute_history)
    if not isinstance(found, VerifiedBundle):
        show_failures(bundle.name, [str(finding) for finding in found], as_json=as_json)
        raise typer.Exit(EXIT_DOES_NOT_HOLD)
    statement = {name: describe_ledger(log, found.documents) for name, log in found.logs.items()}
    if as_json:
        show_json({"holds": True, "ledgers": statement})
        return
    typer.echo(f"{bundle.name}: everything holds")
    for name, log in found.logs.items():
        for study in find_uncompared(log.state, found.documents):
            typer.echo(f"{name}: study {study} was not compared: its signed study is not in this bundle")
    for name, described in statement.items():
        show_statement(described, title=name, as_json=False)


@app.command()
def report(
    bundle: Annotated[Path, typer.Argument(help="the archive that a hospital or the consortium exported")],
    keys: Annotated[Path, typer.Option(help="pinned-keys.json, obtained by another channel")],
    out: Annotated[Path, typer.Option(help="the folder to write report.json and report.html to")],
) -> None:
    """Verify a bundle and write what follows from it, for people and programs; a bundle that fails gets no report."""
    from fedtwin_shared.ledger.audit_report import describe_audit
    from fedtwin_shared.ledger.pins import read_pinned_keys
    from fedtwin_shared.ledger.report_page import render_report
    from fedtwin_shared.ledger.spending_history import trace_history
    from fedtwin_shared.ledger.verification import VerifiedBundle, read_bundle_file, verify_bundle

    data, pinned = read_bundle_file(bundle), read_pinned_keys(keys)
    found = verify_bundle(data, pinned=pinned, replay=trace_history)
    if not isinstance(found, VerifiedBundle):
        show_failures(bundle.name, [str(finding) for finding in found], as_json=False)
        raise typer.Exit(EXIT_DOES_NOT_HOLD)
    described = describe_audit(data, found, pinned=pinned)
    document = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files = {out / "report.json": document, out / "report.html": render_report(described, found)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            replace_file(file, text.encode())
    except OSError as err:
        raise ConfigurationError(file=out, expected="a folder to write to", found=err.strerror or "none") from err
    typer.echo(f"{bundle.name}: everything holds; {' and '.join(map(str, files))}")


def describe_price(signed: SignedStudy) -> dict[str, object]:
    """Return what the study may cost one patient, by two accountants, and the arrays that may leave a site."""
    study = signed.study
    delta = accounted_delta(study.privacy.delta)
    trained = study.training_event(study.planned_steps)
    tested = study.evaluation_event(study.planned_evaluations)
    return {
        "study": f"{study.name} version {study.version}",
        "digest": study.digest,
        "unit": "one patient with all their records at one hospital; add or remove one",
        "budget": {"epsilon": study.privacy.epsilon, "delta": delta},
        "price": study.price(),
        "rule": "a patient is in training or in evaluation, by their id alone: the larger of the two, by PLD; "
        "the Rényi figure is a second, looser accountant that must not be below it",
        "caveat": CAVEAT,
        "training": {
            "mechanism": trained.mechanism.value,
            "sampling_rate": trained.sampling_rate,
            "noise_multiplier": trained.noise_multiplier,
            "steps": trained.count,
            "epsilon_pld": compute_epsilon([trained], delta=delta),
            "epsilon_renyi": compute_epsilon_renyi([trained], delta=delta),
        },
        "evaluation": {
            "mechanism": tested.mechanism.value,
            "noise_multiplier": tested.noise_multiplier,
            "releases": tested.count,
            "epsilon_pld": compute_epsilon([tested], delta=delta),
            "epsilon_renyi": compute_epsilon_renyi([tested], delta=delta),
        },
        "leaves_a_site": {
            task.value: {name: list(shape) for name, shape in declared_arrays(study, task).items()} for task in Task
        },
        "sites": [part.site for part in study.participants],
    }
