"""`fedtwin simulate`: what researchers type. Parses, and calls one function."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedtwin_shared.errors import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from fedtwin_simulations.campaign.specification import Campaign
    from fedtwin_simulations.experiment import OnProgress

app = typer.Typer(
    help="Researchers: simulated consortia, experiments, benchmarks.", no_args_is_help=True, add_completion=False
)

Data = Annotated[Path | None, typer.Option(help="folder of the public data set")]
AsJson = Annotated[bool, typer.Option("--json", help="machine-readable, on standard output")]
Workers = Annotated[int, typer.Option(min=1, help="processes; changes the time, never a result")]

EXIT_GOAL_MISSED = 1
QUIET_SHARE = 0.1  # without a terminal, progress is a line at every tenth


@app.command()
def run(
    study: Annotated[str, typer.Argument(help="a study.toml, or the name of a packaged experiment")],
    sites: Annotated[int, typer.Option(min=1, help="number of simulated hospitals")] = 4,
    data: Annotated[Path | None, typer.Option(help="folder with one directory of files per hospital")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of hospitals and noise")] = 0,
    as_json: AsJson = False,
) -> None:
    """Run one study in one process: the real coordinator's and hospitals' code on simulated or given hospitals."""
    from fedtwin_simulations.results import write_json
    from fedtwin_simulations.single_run import run_single
    from fedtwin_simulations.tables import show_results

    results = run_single(study, sites=sites, data=data, seed=seed)
    if as_json:
        typer.echo(write_json(results), nl=False)
    else:
        show_results(Console(), results)


@app.command()
def experiment(
    name: Annotated[str, typer.Argument(help="a packaged experiment, or the path of a TOML file")],
    data: Data = None,
    as_json: AsJson = False,
    workers: Workers = 2,
    output: Annotated[Path | None, typer.Option(help="folder of a campaign's results; its name without it")] = None,
    trial: Annotated[str | None, typer.Option(help="run this one trial of a campaign alone: CASE@SEED")] = None,
) -> None:
    """Compare methods and prices: on one data set, or as a campaign on virtual hospitals with a report at its end.

    A campaign that was interrupted goes on when it is started again with the same output folder.
    """
    from fedtwin_simulations.campaign.specification import is_campaign, read_campaign
    from fedtwin_simulations.experiment import run_experiment
    from fedtwin_simulations.results import write_json
    from fedtwin_simulations.specification import read_experiment
    from fedtwin_simulations.tables import show_results

    if is_campaign(name):
        _run_campaign(read_campaign(name), output or Path(Path(name).stem), workers=workers, trial=trial)
        return
    found = read_experiment(name)
    with _progress(found.title) as on_progress:
        results = run_experiment(found, data=data, workers=workers, on_progress=on_progress)
    if as_json:
        typer.echo(write_json(results), nl=False)
    else:
        show_results(Console(), results)


def _run_campaign(campaign: Campaign, output: Path, *, workers: int, trial: str | None) -> None:
    from fedtwin_simulations.campaign.findings import findings_table, write_findings
    from fedtwin_simulations.campaign.trials import parse_trial, run_one, run_trials

    if trial is not None:
        case, seed = parse_trial(campaign, trial)
        for name, value in run_one(campaign, case, seed, output).figures.items():
            typer.echo(f"{name} {value:.6g}")
        return
    with _end_on_signal(), _progress(campaign.title) as on_progress:
        trials = run_trials(campaign, output, workers=workers, on_progress=on_progress)
    Console().print(findings_table(campaign, write_findings(campaign, trials, output)))
    Console().print(f"report: {output / 'report.md'}", highlight=False)


@app.command()
def sweep(
    name: Annotated[str, typer.Argument(help="a campaign with a [sweep], packaged or the path of a TOML file")],
    case: Annotated[str, typer.Option(help="the case that is tuned")],
    output: Annotated[Path | None, typer.Option(help="folder that keeps the trials; it goes on there")] = None,
) -> None:
    """Tune a case of a campaign on virtual patients whom it does not report; nobody's budget is touched."""
    from fedtwin_simulations.campaign.specification import read_campaign

    campaign = read_campaign(name)
    try:
        from fedtwin_simulations.campaign.sweep import run_sweep
    except ModuleNotFoundError as err:
        Console(stderr=True).print("sweeps need Optuna: pip install 'fedtwin[simulations-sweep]'", markup=False)
        raise typer.Exit(EXIT_BAD_INPUT) from err
    folder = output or Path(f"{Path(name).stem}-sweep")
    with _end_on_signal(), _progress(f"{campaign.title}: {case}") as on_progress:
        best = run_sweep(campaign, campaign.case(case), folder, on_progress=on_progress)
    for path, value in best.values.items():
        typer.echo(f"{path} = {value:.4g}")
    typer.echo(f"{campaign.measures[0]} {best.figure:.4f} over {best.trials} trials")


@app.command()
def ablation(
    name: Annotated[str, typer.Argument(help="a packaged experiment of logistic regression, or the path of a file")],
    data: Data = None,
    epsilon: Annotated[float | None, typer.Option(help="which private line; the demo's price without it")] = None,
) -> None:
    """Change one thing of a private study at a time, at equal ε: what helps, and what does not."""
    from fedtwin_simulations.ablation import ablation_table, choose_entry, run_ablation
    from fedtwin_simulations.specification import read_experiment

    found = read_experiment(name)
    entry = choose_entry(found, epsilon)
    with _progress(found.title) as on_progress:
        lines = run_ablation(found, entry, data=data, on_progress=on_progress)
    Console().print(ablation_table(f"{found.title}, ε = {entry.epsilon:g}", lines, found.metrics[0]))


@app.command()
def demo(
    study: Annotated[str, typer.Option(help="virtual, heart, eicu, physionet2012, or the path of a TOML file")] = (
        "virtual"
    ),
    data: Data = None,
    output: Annotated[Path, typer.Option(help="a new folder, or one of an earlier demo")] = Path("demo"),
    workers: Workers = 1,
) -> None:
    """Run four hospitals and a coordinator as real processes, one private study, then its comparisons."""
    from fedtwin_simulations.demo import REPORT_JSON, REPORT_PAGE, run_demo
    from fedtwin_simulations.specification import read_experiment
    from fedtwin_simulations.tables import show_results

    found, console, began = read_experiment(study), Console(), time.monotonic()

    def say(line: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.1f} s[/dim]  {line}", highlight=False)

    say(f"[bold]{found.title}[/bold]")
    with _end_on_signal(), _progress("comparisons") as on_progress:
        results = run_demo(found, data=data, output=output, workers=workers, say=say, on_progress=on_progress)
    show_results(console, results)
    console.print(f"report: {output / REPORT_PAGE} and {output / REPORT_JSON}")


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="what is measured; an unknown name lists them")],
    as_json: AsJson = False,
) -> None:
    """Measure one part beside its goal; exit with 1 when a goal is missed."""
    from fedtwin_simulations.bench import run_bench
    from fedtwin_simulations.results import write_json
    from fedtwin_simulations.tables import bench_table

    console = Console(stderr=True)
    with _end_on_signal():
        found = run_bench(name, say=lambda line: console.print(line, highlight=False))
    if as_json:
        typer.echo(write_json(found), nl=False)
    else:
        Console().print(bench_table(found))
    if not all(row.holds for row in found.rows):
        raise typer.Exit(EXIT_GOAL_MISSED)


@app.command()
def forecast(
    data: Annotated[Path, typer.Option(help="folder of the ShanghaiT1DM and T2DM readings")],
    as_json: AsJson = False,
) -> None:
    """Measure the glucose twin's forecasts on real sensors beside simple methods; exit with 1 when a goal is missed."""
    from fedtwin_simulations.cgm_forecast import bench_forecast
    from fedtwin_simulations.results import write_json
    from fedtwin_simulations.tables import bench_table

    console = Console(stderr=True)
    found = bench_forecast(data, lambda line: console.print(line, highlight=False))
    if as_json:
        typer.echo(write_json(found), nl=False)
    else:
        Console().print(bench_table(found))
    if not all(row.holds for row in found.rows):
        raise typer.Exit(EXIT_GOAL_MISSED)


@app.command()
def hospitals(
    folder: Annotated[Path, typer.Argument(help="a new or empty folder; one directory per hospital is written")],
    consortium: Annotated[
        Path | None, typer.Option(help="TOML of the hospitals; without it, `sites` usual ones")
    ] = None,
    sites: Annotated[int, typer.Option(min=1, help="number of hospitals")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="of the patients")] = 0,
) -> None:
    """Write simulated hospitals' files, in the format that a real hospital's reader expects."""
    from fedtwin_simulations.consortium_file import check_empty, write_consortium
    from fedtwin_simulations.virtual_hospitals import write_hospitals

    if consortium is not None:
        written = write_consortium(consortium, folder)
    else:
        check_empty(folder)
        written = write_hospitals(folder, count=sites, seed=seed)
    for site in written:
        typer.echo(folder / site)


@contextmanager
def _progress(title: str) -> Iterator[OnProgress]:
    """A bar on a terminal, a line at every tenth elsewhere; on standard error, so that JSON stays alone."""
    console = Console(stderr=True)
    if not console.is_terminal:
        told = 0.0

        def tell(done: int, every: int) -> None:
            nonlocal told
            if done >= every or done / every >= told + QUIET_SHARE:
                told = done / every
                console.print(f"{title}: {done} of {every}", highlight=False)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, visible=False)
        yield lambda done, every: bar.update(task, completed=done, total=every, visible=True)


@contextmanager
def _end_on_signal() -> Iterator[None]:
    """SIGTERM unwinds like an exception, so that every process that was started is stopped and reaped."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
