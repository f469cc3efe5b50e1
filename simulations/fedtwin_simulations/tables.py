"""The tables that a person reads, made from the same records that become JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedtwin_simulations.results import Bench, Results, Row

SITES_WIDTH = 110  # columns of a terminal from which figures of every site fit

METHOD_NAMES = {
    "pooled": "pooled in one place",
    "local": "each site alone",
    "federated": "federated, no privacy",
    "private": "federated, private",
}


def show_results(console: Console, results: Results) -> None:
    """Print an experiment: its primary rows, every other row, figures to compare with, and its policy."""
    wide = console.width >= SITES_WIDTH
    console.print(results_table(results.results, title=results.study, by_site=wide))
    if not wide:
        console.print(Text("by site: in the JSON, or on a wider terminal", style="dim"))
    if results.references:
        console.print(_references_table(results))
    for line in results.policy:
        console.print(Text(f"· {line}", style="dim"))
    console.print(Text(f"{results.seconds:.0f} s", style="dim"))


def results_table(rows: Sequence[Row], *, title: str, by_site: bool = True) -> RenderableType:
    """Return the rows as a table: `sites` is the mean of the sites' own figures; primary rows are bold."""
    sites = list(dict.fromkeys(site for row in rows for site in row.per_site)) if by_site else []
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("method", "ε", "metric"):
        table.add_column(name, overflow="fold")
    for name in ("overall", "sites", "± seeds", *sites):
        table.add_column(name, justify="right", min_width=5, overflow="fold")
    for row in rows:
        table.add_row(
            ", ".join([METHOD_NAMES[row.method], *row.model.split(", ")[1:]]),
            format_epsilon(row),
            row.metric,
            format_figure(row.overall),
            format_figure(row.site_mean),
            format_spread(row),
            *(format_figure(row.per_site.get(site)) for site in sites),
            style="bold" if row.primary else "",
        )
    return table


def bench_table(bench: Bench) -> RenderableType:
    """Return a benchmark as a table."""
    table = Table(title=f"bench {bench.bench}", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("case", "ours", "baseline", "ratio", "unit", "goal", "holds"):
        table.add_column(name, justify="right" if name in {"ours", "ratio"} else "left")
    for row in bench.rows:
        baseline = "–" if row.baseline is None else f"{row.baseline:.4g} ({row.baseline_name})"
        ratio = "–" if row.ratio is None else f"{row.ratio:.3f}"
        table.add_row(row.case, f"{row.ours:.4g}", baseline, ratio, row.unit, row.goal, "yes" if row.holds else "NO")
    return table


def format_figure(value: float | None) -> str:
    """Return three decimals, or a dash where there is no value (None or NaN)."""
    return "–" if value is None or value != value else f"{value:.3f}"


def format_epsilon(row: Row) -> str:
    """Return the price of a row; "none" for a method without privacy, which is not ε = 0 but ε = ∞."""
    return "none" if row.epsilon is None else f"{row.epsilon:g}"


def format_spread(row: Row) -> str:
    """Return the standard deviation over seeds and their number."""
    values = [value for value in row.per_seed.values() if value is not None and value == value]
    return f"{statistics.stdev(values):.3f} ({len(values)})" if len(values) > 1 else "–"


def _references_table(results: Results) -> RenderableType:
    table = Table(title="to compare with", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("figure", "metric", "value", "95 %", "source"):
        table.add_column(name, justify="right" if name == "value" else "left")
    for one in results.references:
        interval = "" if one.interval is None else f"{one.interval[0]:.3f} to {one.interval[1]:.3f}"
        table.add_row(one.name, one.metric, format_figure(one.value), interval, one.source)
    return Group(table)
