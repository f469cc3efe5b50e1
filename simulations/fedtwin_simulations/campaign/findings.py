"""From trials to a table, plots and a manifest: means over seeds with their 95 % intervals, differences in pairs."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from fedtwin_shared.durable import replace_file
from fedtwin_shared.signing import digest
from fedtwin_simulations.campaign.specification import Campaign, Case, Measure
from fedtwin_simulations.campaign.trials import Trial
from fedtwin_simulations.plots import Line, draw_intervals, draw_lines
from fedtwin_simulations.results import describe_machine, list_versions

# Student's t, two-sided 95 %, by degrees of freedom (Fisher and Yates 1938, table III); the normal's beyond.
STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    14: 2.145,
    19: 2.093,
}
NORMAL = 1.96
SHADES = ("#0f766e", "#1d4ed8", "#b45309", "#6b7280", "#b91c1c", "#7c3aed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A mean over seeds and half the width of its 95 % interval (Student 1908); NaN where seeds are too few."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        return f"{self.mean:.3f}" if math.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One case of a campaign."""

    case: Case
    figures: Mapping[Measure, Figure]


def summarise(campaign: Campaign, trials: Sequence[Trial]) -> list[Finding]:
    """Return every case's figures, in the file's order.

    `gain_over_alone` and `sites_better_than_alone` compare each site with itself alone under the same seed, in the case
    with method "alone", the same hospitals and the same price that stands in the file; they are left out without one.
    """
    by_name = {(trial.case, trial.seed): trial for trial in trials}
    found = []
    for case in campaign.cases:
        own = [by_name[case.name, seed] for seed in campaign.seeds]
        alone = _find_alone(campaign, case)
        values: dict[Measure, list[float]] = {}
        for trial in own:
            figures = dict(trial.figures)
            if alone is not None:
                figures |= compare(trial, by_name[alone.name, trial.seed])
            for measure in campaign.measures:
                if measure in figures:
                    values.setdefault(measure, []).append(figures[measure])
        found.append(Finding(case=case, figures={name: interval(own) for name, own in values.items()}))
    return found


def _find_alone(campaign: Campaign, case: Case) -> Case | None:
    """The case to compare with: the same hospitals and price, or the same hospitals without a price."""
    same = [one for one in campaign.cases if one.method == "alone" and one.hospitals == case.hospitals]
    priced = [one for one in same if one.epsilon == case.epsilon]
    return next(iter([*priced, *(one for one in same if one.epsilon is None)]), None)


def compare(trial: Trial, alone: Trial) -> dict[Measure, float]:
    """Return the mean difference of the sites' AUROC, and the share of sites that are better off."""
    pairs = [(value, alone.sites.get(site)) for site, value in trial.sites.items()]
    gains = [value - other for value, other in pairs if value is not None and other is not None]
    if not gains:
        return {"gain_over_alone": math.nan, "sites_better_than_alone": math.nan}
    return {
        "gain_over_alone": statistics.fmean(gains),
        "sites_better_than_alone": sum(gain > 0 for gain in gains) / len(gains),
    }


def interval(values: Sequence[float]) -> Figure:
    """Return mean and half width over the values that are defined.

    >>> str(interval([0.7, 0.8, 0.9]))
    '0.800 ± 0.248'
    """
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Figure(mean=math.nan, half=math.nan, seeds=0)
    if len(known) == 1:
        return Figure(mean=known[0], half=math.nan, seeds=1)
    freedom = len(known) - 1
    # Between two entries of the table the wider one is taken.
    factor = next((STUDENT[one] for one in sorted(STUDENT, reverse=True) if one <= freedom), NORMAL)
    half = factor * statistics.stdev(known) / math.sqrt(len(known))
    return Figure(mean=statistics.fmean(known), half=half, seeds=len(known))


def write_findings(campaign: Campaign, trials: Sequence[Trial], folder: Path) -> list[Finding]:
    """Write table.csv, trials.csv, report.md, plot.svg and manifest.json into `folder`; return the findings.

    - the same trials write the same table, trials and plot, byte for byte
    """
    findings = summarise(campaign, trials)
    written = {
        "table.csv": write_table(campaign, findings),
        "trials.csv": write_trials(campaign, trials),
        "plot.svg": draw(campaign, findings) + "\n",
    }
    written["report.md"] = write_report(campaign, findings)
    for name, text in written.items():
        replace_file(folder / name, text.encode())
    manifest = {
        "campaign": campaign.name,
        "digest": campaign.digest,
        "seeds": list(campaign.seeds),
        "versions": list_versions(),
        "machine": describe_machine(),
        "files": {name: digest(text.encode()) for name, text in sorted(written.items())},
        "trials": {trial.name: digest(repr(sorted(_steady(trial).items())).encode()) for trial in trials},
    }
    replace_file(folder / "manifest.json", (json.dumps(manifest, indent=2) + "\n").encode())
    return findings


def _steady(trial: Trial) -> dict[Measure, float]:
    """What a trial found, but for the time it took."""
    return {name: value for name, value in trial.figures.items() if name != "seconds"}


def write_table(campaign: Campaign, findings: Sequence[Finding]) -> str:
    """Return CSV: one line for each case, mean and half width of every measure."""
    measures = _measured(campaign, findings)
    rows = [["case", "method", "epsilon", "noise", *(part for one in measures for part in (one, f"{one}_half"))]]
    for found in findings:
        figures = [found.figures.get(one, Figure(mean=math.nan, half=math.nan, seeds=0)) for one in measures]
        numbers = [_decimal(value) for figure in figures for value in (figure.mean, figure.half)]
        price = "" if found.case.epsilon is None else f"{found.case.epsilon:g}"
        rows.append([found.case.name, found.case.method, price, found.case.noise if price else "none", *numbers])
    return _as_csv(rows)


def write_trials(campaign: Campaign, trials: Sequence[Trial]) -> str:
    """Return CSV: one line for each trial and everything that it found, but for the time it took."""
    names = sorted({name for trial in trials for name in _steady(trial)})
    rows = [["case", "seed", *names]]
    for trial in trials:
        figures: Mapping[str, float] = {str(name): value for name, value in trial.figures.items()}
        rows.append([trial.case, str(trial.seed), *(_decimal(figures.get(name, math.nan)) for name in names)])
    return _as_csv(rows)


def write_report(campaign: Campaign, findings: Sequence[Finding]) -> str:
    """Return the report as Markdown: the question, the table with intervals, the plot, what it does not say."""
    measures = _measured(campaign, findings)
    lines = [f"# {campaign.title}", "", campaign.question, ""]
    lines += ["| case | ε | " + " | ".join(name.replace("_", " ") for name in measures) + " |"]
    lines += ["|" + "---|" * (2 + len(measures))]
    for found in findings:
        price = "none" if found.case.epsilon is None else f"{found.case.epsilon:g}, {found.case.noise}"
        cells = [str(found.figures.get(one, "–")) for one in measures]
        lines.append(f"| {found.case.name} | {price} | " + " | ".join(cells) + " |")
    seeds = ", ".join(map(str, campaign.seeds))
    lines += [
        "",
        f"Means over seeds {seeds} with 95 % intervals (Student's t). Every seed simulates other patients.",
        "",
    ]
    lines += ["![plot](plot.svg)", "", *(f"- {note}" for note in campaign.notes)]
    return "\n".join(lines) + "\n"


def findings_table(campaign: Campaign, findings: Sequence[Finding]) -> Table:
    """Return the findings as a table for a terminal."""
    measures = _measured(campaign, findings)
    table = Table(title=campaign.title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("case", *measures):
        table.add_column(name.replace("_", " "), overflow="fold")
    for found in findings:
        table.add_row(found.case.name, *(str(found.figures.get(one, "–")) for one in measures))
    return table


def draw(campaign: Campaign, findings: Sequence[Finding]) -> str:
    """Return the campaign's plot as SVG: lines over x where cases have one, else a mark for each case."""
    plot = campaign.plot
    title, unit = campaign.title, plot.y.replace("_", " ")
    groups = list(dict.fromkeys(found.case.group for found in findings if found.case.x is not None))
    if not groups:
        shown = [found for found in findings if plot.y in found.figures]
        figures = [found.figures[plot.y] for found in shown]
        return draw_intervals(
            [found.case.name for found in shown],
            [figure.mean for figure in figures],
            [0.0 if math.isnan(figure.half) else figure.half for figure in figures],
            title=title,
            x=unit,
        )
    lines = [_line(findings, group, plot.y, SHADES[place % len(SHADES)]) for place, group in enumerate(groups)]
    ends = [min(min(line.x) for line in lines), max(max(line.x) for line in lines)]
    for found in findings:  # cases without a place are levels to compare with
        if found.case.x is None and plot.y in found.figures:
            level = found.figures[plot.y].mean
            lines.append(Line(label=found.case.name, x=ends, y=[level, level], colour=SHADES[3], dashed=True))
    return draw_lines(lines, title=title, x=plot.x, y=unit, logarithmic=plot.log)


def _line(findings: Sequence[Finding], group: str, measure: Measure, colour: str) -> Line:
    own = [one for one in findings if one.case.x is not None and one.case.group == group and measure in one.figures]
    points = sorted((float(one.case.x or 0.0), one.figures[measure]) for one in own) if own else []
    return Line(
        label=group,
        x=[x for x, _ in points],
        y=[figure.mean for _, figure in points],
        halves=[0.0 if math.isnan(figure.half) else figure.half for _, figure in points],
        colour=colour,
    )


def _measured(campaign: Campaign, findings: Sequence[Finding]) -> list[Measure]:
    return [one for one in campaign.measures if any(one in found.figures for found in findings)]


def _decimal(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _as_csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
