"""`fedtwin server`: what the consortium runs. Parses, and calls one function."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedtwin_server.config import CoordinatorDirectory

app = typer.Typer(help="Consortium: run the coordinator.", no_args_is_help=True, add_completion=False)
study_app = typer.Typer(help="Draft, sign and start studies.", no_args_is_help=True, add_completion=False)
app.add_typer(study_app, name="study")

Directory = Annotated[Path, typer.Argument(help="the coordinator's directory")]
RunId = Annotated[str, typer.Argument(help="fedtwin's id of the run")]
Detach = Annotated[bool, typer.Option("--detach", help="return once the run is submitted")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable")]

EXIT_NOT_FINISHED = 1  # the run failed or was interrupted


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="a new or empty directory")],
    name: Annotated[str, typer.Option(help="the coordinator's name in the roster")],
    address: Annotated[str, typer.Option(help="host:port that hospitals dial")],
    listen: Annotated[str, typer.Option(help="host:port to listen on; every address of this machine if absent")] = "",
    link_port: Annotated[int, typer.Option(help="loopback port of the SuperLink")] = 9093,
) -> None:
    """Make a coordinator's directory: keys, authority, certificate, configuration, systemd unit, compose file."""
    from fedtwin_server.installation import create_coordinator

    created = create_coordinator(
        directory,
        name=name,
        address=address,
        listen=listen or f"0.0.0.0:{address.rpartition(':')[2]}",
        link_port=link_port,
        now=dt.datetime.now(dt.UTC),
    )
    _print_invitation(created)


@app.command()
def enrol(
    directory: Directory,
    name: Annotated[str, typer.Option(help="the hospital's name in the roster")],
    signing_key: Annotated[str, typer.Option(help="the hospital's public signing key: ed25519:…")],
    node_key: Annotated[Path, typer.Option(help="file with the public key of the hospital's node")],
) -> None:
    """Add a hospital to the roster, and register its node: now if the coordinator runs, else when it does."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.coordinator import link_answers, register_pending
    from fedtwin_server.installation import enrol_site

    found = read_directory(directory)
    roster = enrol_site(found, name=name, signing_key=signing_key, node_key=node_key)
    typer.echo(f"roster version {roster.version}: {', '.join(site.name for site in roster.sites)}")
    if link_answers(found):
        for site, node in register_pending(found).items():
            typer.echo(f"registered {site} as node {node}")


@app.command()
def run(directory: Directory) -> None:
    """Run the coordinator in the foreground until SIGTERM or SIGINT."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.coordinator import run_coordinator
    from fedtwin_shared.supervision import end_with_supervisor, stop_on_signals

    end_with_supervisor()
    found = read_directory(directory)
    with stop_on_signals() as stop:
        run_coordinator(found, stop, _say)


@app.command()
def front(directory: Directory) -> None:
    """Run the TLS front alone; `run` does it for you."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.front import FrontSettings, serve_front
    from fedtwin_shared.fields import split_address
    from fedtwin_shared.supervision import end_with_supervisor

    end_with_supervisor()
    found = read_directory(directory)
    host, port = split_address(found.config.front.listen)
    serve_front(
        FrontSettings(
            host=host,
            port=port,
            certificate=found.server.certificate,
            private_key=found.server.private_key,
            upstream=f"https://{found.superlink.address}",
            certificate_authority=found.authority.certificate,
            releases=found.releases,
        )
    )


@app.command()
def witness(
    directory: Annotated[Path, typer.Argument(help="the witness's directory, with witness.toml")],
    new: Annotated[bool, typer.Option("--new", help="make its key and memory, show its vkey and end")] = False,
) -> None:
    """Cosign hospitals' ledgers that only grow, in the foreground until SIGTERM or SIGINT."""
    from fedtwin_shared.ledger.witness_service import run_witness
    from fedtwin_shared.supervision import end_with_supervisor

    if not new:
        end_with_supervisor()
    run_witness(directory, new=new, say=_say)


@app.command()
def health(directory: Directory) -> None:
    """Exit with 0 while front and link answer, with 1 otherwise."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.coordinator import is_healthy

    if not is_healthy(read_directory(directory)):
        typer.echo("no answer", err=True)
        raise typer.Exit(1)
    typer.echo("ok")


@app.command()
def renew(directory: Directory) -> None:
    """Give front and link a new certificate, valid for a year; restart the coordinator to use it."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.installation import renew_certificate
    from fedtwin_shared.certificates import expires_at

    found = read_directory(directory)
    renew_certificate(found, now=dt.datetime.now(dt.UTC))
    typer.echo(f"valid until {expires_at(found.server.certificate).date().isoformat()}")


@app.command()
def status(directory: Directory, as_json: AsJson = False) -> None:
    """Show the coordinator, the hospitals' nodes and the runs."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.coordinator import enrolled_nodes, is_healthy
    from fedtwin_server.runs import summarise_runs

    found = read_directory(directory)
    document: dict[str, Any] = {
        "coordinator": _invitation(found) | {"healthy": is_healthy(found)},
        "nodes": [dataclasses.asdict(node) for node in enrolled_nodes(found)],
        "runs": [dataclasses.asdict(summary) for summary in summarise_runs(found)],
    }
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(f"coordinator: {'answers' if document['coordinator']['healthy'] else 'does not answer'}")
    _print_invitation(found)
    for node in document["nodes"]:
        typer.echo(f"node {node['site']}: {node['status']}")
    for one in document["runs"]:
        rounds = f"{one['rounds_done']}/{one['rounds_planned']} rounds"
        typer.echo(f"run {one['run']}: {one['study']}, {rounds}, {one['status']}")


@app.command()
def resume(directory: Directory, run: RunId, detach: Detach = False) -> None:
    """Continue a failed or interrupted run at its next round; exit with 1 unless it finishes."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.following import progress_size, resume_run

    found = read_directory(directory)
    offset = progress_size(found, run)
    _follow(found, run, resume_run(found, run), offset=offset, detach=detach)


@app.command()
def release(
    directory: Directory,
    study: Annotated[str, typer.Argument(help="name of a study whose run is finished")],
) -> None:
    """Sign the newest model of a study, what it may tell about a patient, and the ledgers that prove it; serve both."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.releases import release_study

    released = release_study(read_directory(directory), study, clock=time.time)
    typer.echo(released.release.guarantee.words)
    ledgers = len(released.release.checkpoints)
    typer.echo(f"proved by the ledgers of {ledgers} of {len(released.release.sites)} hospitals")
    typer.echo(f"signed {released.file}")


@study_app.command()
def draft(
    directory: Directory,
    name: Annotated[str, typer.Argument(help="name of the study")],
    template: Annotated[str, typer.Option(help="first-day, course, or a path")] = "first-day",
) -> None:
    """Write an explained study.toml for the hospitals that are enrolled now."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.studies import draft_study

    typer.echo(draft_study(read_directory(directory), name=name, template=template))


@study_app.command()
def sign(directory: Directory, file: Annotated[Path, typer.Argument(help="study.toml")]) -> None:
    """Check a study, print its price, and sign it; exit with 2 and one line where it is wrong."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.studies import sign_file
    from fedtwin_shared.privacy import CAVEAT

    result = sign_file(read_directory(directory), file)
    study = result.signed.study
    typer.echo(f"digest {study.digest}")
    if study.privacy.mode == "none":
        typer.echo("price: no noise, so no privacy guarantee; hospitals refuse it")
    else:
        typer.echo(f"price ε = {study.price():.3f} of {study.privacy.epsilon:g} at δ = {study.privacy.delta:g}")
    if study.split.rule == "column":
        typer.echo("split by a column of the file: for simulations; hospitals refuse it")
    typer.echo(CAVEAT)
    typer.echo(f"signed {result.file}")


@study_app.command()
def collect(
    directory: Directory,
    signed: Annotated[Path, typer.Argument(help="study.signed.json")],
    countersigned: Annotated[list[Path], typer.Argument(help="countersigned.json of a hospital; several")],
) -> None:
    """Add hospitals' signatures to a signed study; send the file to every hospital again."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.studies import collect_signatures

    study = collect_signatures(read_directory(directory), signed, countersigned)
    missing = [part.site for part in study.study.participants if part.site not in study.signers]
    typer.echo(f"signed by {', '.join(sorted(study.signers))}; not yet by {', '.join(missing) or 'nobody else'}")


@study_app.command()
def start(
    directory: Directory,
    signed: Annotated[Path, typer.Argument(help="study.signed.json")],
    detach: Detach = False,
) -> None:
    """Start the run of a signed study and follow it; exit with 1 unless it finishes."""
    from fedtwin_server.config import read_directory
    from fedtwin_server.following import new_run_id, start_study
    from fedtwin_server.studies import read_signed
    from fedtwin_shared.ledger.witnesses import WITNESSES, read_witnesses

    found, run = read_directory(directory), new_run_id()
    study, witnesses = read_signed(found, signed), read_witnesses(found.root / WITNESSES)
    flower_run = start_study(found, study, run=run)
    typer.echo(f"run {run}")
    if witnesses is None:
        typer.echo(f"no {WITNESSES}: updates count without proof that hospitals charged for them")
    _follow(found, run, flower_run, offset=0, detach=detach)


def _follow(directory: CoordinatorDirectory, run: str, flower_run: int, *, offset: int, detach: bool) -> None:
    from fedtwin_server.following import follow_run, release_folder

    if detach:
        return
    status = follow_run(directory, run, flower_run=flower_run, offset=offset, say=_say)
    if status != "finished":
        typer.echo(f"{status}; to go on: fedtwin server resume {directory.root} {run}", err=True)
        raise typer.Exit(EXIT_NOT_FINISHED)
    typer.echo(f"finished: {release_folder(directory, run)}")


def _invitation(directory: CoordinatorDirectory) -> dict[str, str]:
    """What every hospital needs, over a channel that both sides trust."""
    from fedtwin_server.bundle import bundle_digest
    from fedtwin_server.installation import public_key
    from fedtwin_shared.certificates import expires_at

    return {
        "name": directory.config.name,
        "address": directory.config.front.address,
        "public_key": public_key(directory),
        "authority": str(directory.authority.certificate),
        "bundle": bundle_digest(),
        "certificate_expires": expires_at(directory.server.certificate).date().isoformat(),
    }


def _print_invitation(directory: CoordinatorDirectory) -> None:
    invitation = _invitation(directory)
    typer.echo(f"certificate valid until {invitation['certificate_expires']}")
    typer.echo("a hospital needs, over a channel that both sides trust:")
    for key in ("address", "public_key", "authority", "bundle"):
        typer.echo(f"  {key:<11}{invitation[key]}")


def _say(line: str) -> None:
    typer.echo(line)
