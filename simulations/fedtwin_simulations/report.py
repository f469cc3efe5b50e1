"""The page that a demo leaves behind: one file, plots inline, nothing fetched, and what its ε means and does not."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedtwin_shared.privacy import CAVEAT
from fedtwin_shared.study import Study
from fedtwin_simulations.plots import COLOURS, PRIVATE_SHADES, Bars, Line, draw_bars, draw_lines
from fedtwin_simulations.results import Results, Row
from fedtwin_simulations.tables import METHOD_NAMES, format_epsilon, format_figure

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#111827}
h1{line-height:1.2}h2{margin-top:2.2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid #e5e7eb;text-align:right}
th:first-child,td:first-child{text-align:left}tr.primary td{font-weight:600}
figure{margin:1rem 0}svg{max-width:100%;height:auto}
aside{border-left:4px solid #b91c1c;background:#fef2f2;padding:.6rem 1rem}
code{font-size:.85em;overflow-wrap:anywhere}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How the real study went: the study, and the coordinator's own report about the run."""

    study: Study
    report: Mapping[str, Any]
    seconds: float
    nodes: int


def write_page(results: Results, course: Course, *, title: str, metric: str) -> str:
    """Return the page. `metric`: the one that is drawn.

    - nothing is loaded from anywhere: no script, no link, no image outside the page
    - the caveat of every ε stands on it
    """
    study, report = course.study, course.report
    sections = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(study.question)} {len(study.participants)} hospitals and a coordinator ran as "
        f"{course.nodes} nodes of real processes with TLS and node authentication; each hospital held only its own "
        f"directory. The study took {course.seconds:.0f} s.</p>",
        _caveat(course),
        "<h2>Methods compared</h2>",
        _results_table([row for row in results.results if row.primary]),
        f"<details><summary>Every metric</summary>{_results_table(results.results)}</details>",
        *(f"<p>{_text(line)}</p>" for line in results.policy),
        "<h2>Learning curve</h2>",
        _figure(
            _learning_curve(report, results, metric),
            "Dots: from the histograms that hospitals released, with their noise. Dashed: exact scores of held-out "
            "patients, which only a simulation may know.",
        ),
        "<h2>Hospitals</h2>",
        _figure(_site_bars(results, metric), "Exact scores of held-out patients, which only a simulation may know."),
        _answers_table(report),
        "<h2>Privacy spent</h2>",
        _figure(
            _spending(study),
            "ε of one patient after each round, against the budget that was signed. A patient is either trained on or "
            "tested on, by their own id, so the two do not add up.",
        ),
        _identity(course, results),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>\n'
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _caveat(course: Course) -> str:
    privacy = course.report["privacy"]
    return (
        f"<aside><p><strong>ε = {privacy['spent_epsilon']:.3f}</strong> of a budget of "
        f"{privacy['budget_epsilon']:g} at δ = {privacy['delta']:g}. Unit: {_text(privacy['unit'])}.</p>"
        f"<p>{_text(CAVEAT[0].upper() + CAVEAT[1:])}.</p></aside>"
    )


def _results_table(rows: Sequence[Row]) -> str:
    sites = list(dict.fromkeys(site for row in rows for site in row.per_site))
    head = ["method", "ε", "metric", "overall", "sites' mean", *sites]
    lines = [_line(head, "th")]
    lines += [_line(_cells(row, sites), "td", primary=row.primary) for row in rows]
    return "<table>" + "".join(lines) + "</table>"


def _cells(row: Row, sites: Sequence[str]) -> list[str]:
    figures = [row.overall, row.site_mean, *(row.per_site.get(site) for site in sites)]
    return [METHOD_NAMES[row.method], format_epsilon(row), row.metric, *(format_figure(value) for value in figures)]


def _learning_curve(report: Mapping[str, Any], results: Results, metric: str) -> str:
    points = [(one["round"], one["overall"]["everybody"].get(metric)) for one in report["evaluations"]]
    known = [(number, value) for number, value in points if value is not None]
    ends = [0, report["rounds"]["planned"]]
    released = Line(
        label="private study, as released",
        x=[number for number, _ in known],
        y=[value for _, value in known],
        colour=COLOURS["private"],
    )
    exact = [
        Line(
            label=f"{METHOD_NAMES[row.method]}, exact",
            x=ends,
            y=[row.overall, row.overall],
            colour=COLOURS[row.method],
            dashed=True,
        )
        for row in results.results
        if row.primary and row.metric == metric and row.overall is not None and _is_drawn(row, report)
    ]
    return draw_lines([released, *exact], title="Model after each evaluated round", x="round", y=metric)


def _is_drawn(row: Row, report: Mapping[str, Any]) -> bool:
    """Of the private methods only the one that was really run."""
    return row.epsilon is None or row.epsilon == report["privacy"]["budget_epsilon"]


def _site_bars(results: Results, metric: str) -> str:
    rows = [row for row in results.results if row.metric == metric and row.primary]
    sites = list(dict.fromkeys(site for row in rows for site in row.per_site))
    prices = sorted(row.epsilon for row in rows if row.epsilon is not None)
    bars = [
        Bars(
            label=METHOD_NAMES[row.method] if row.epsilon is None else f"private, ε = {row.epsilon:g}",
            values=[_number(row.per_site.get(site)) for site in sites],
            colour=COLOURS[row.method]
            if row.epsilon is None
            else PRIVATE_SHADES[min(prices.index(row.epsilon), len(PRIVATE_SHADES) - 1)],
        )
        for row in rows
    ]
    return draw_bars(sites, bars, title="The same metric at each hospital", y=metric)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _answers_table(report: Mapping[str, Any]) -> str:
    refusals: dict[str, list[str]] = {}
    for record in report["history"]:
        for site, code in record["refusals"].items():
            refusals.setdefault(site, []).append(f"{record['task']} {record['round']}: {code}")
    lines = [_line(["hospital", "rounds trained", "models evaluated", "refusals"], "th")]
    for site, answered in report["answered_rounds"].items():
        said = "; ".join(refusals.get(site, [])) or "none"
        lines.append(_line([site, str(len(answered["train"])), str(len(answered["evaluate"])), said], "td"))
    return "<table>" + "".join(lines) + "</table>"


def _spending(study: Study) -> str:
    rounds = range(study.training.rounds + 1)
    evaluated = [*study.evaluation.rounds, study.training.rounds]
    trained = [study.spent(steps=number * study.training.local_steps, releases=0) for number in rounds]
    tested = [study.spent(steps=0, releases=sum(one <= number for one in evaluated)) for number in rounds]
    budget = [study.privacy.epsilon, study.privacy.epsilon]
    lines = [
        Line(label="a patient trained on", x=list(rounds), y=trained, colour=COLOURS["private"], steps=True),
        Line(label="a patient tested on", x=list(rounds), y=tested, colour=COLOURS["federated"], steps=True),
        Line(label="budget", x=[0, study.training.rounds], y=budget, colour=COLOURS["budget"], dashed=True),
    ]
    return draw_lines(lines, title="ε spent against the budget", x="round", y="ε")


def _identity(course: Course, results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return (
        f"<h2>What this was</h2><p>Study {_text(course.study.name)}, version {course.study.version}, digest "
        f"<code>{course.study.digest}</code>; run <code>{_text(str(course.report['run']))}</code>; model digest "
        f"<code>{_text(str(course.report['model']['digest']))}</code>.</p><p>{_text(versions)}.</p>"
    )


def _line(cells: Sequence[str], kind: str, *, primary: bool = False) -> str:
    style = ' class="primary"' if primary else ""
    return f"<tr{style}>" + "".join(f"<{kind}>{_text(cell)}</{kind}>" for cell in cells) + "</tr>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _text(value: str) -> str:
    return html.escape(value)
